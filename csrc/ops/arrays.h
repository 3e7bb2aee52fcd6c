// The arrays that the element-wise kernels work on: pointers with their element types.
//
// All arrays of one call have the same number of elements, L. Arrays must not overlap, and may
// start at any address that suits their type.
#pragma once

#include <cstddef>

#include "csrc/base/dtype.h"

namespace zeromuon::ops {

struct Typed {
  void* data = nullptr;
  DType dtype = DType::kFloat32;

  Typed() = default;
  Typed(void* at, DType type) : data(at), dtype(type) {}
  Typed(float* at) : data(at) {}
  Typed(BFloat16* at) : data(at), dtype(DType::kBFloat16) {}
  Typed(Float16* at) : data(at), dtype(DType::kFloat16) {}
};

struct ConstTyped {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;

  ConstTyped() = default;
  ConstTyped(const void* at, DType type) : data(at), dtype(type) {}
  ConstTyped(const float* at) : data(at) {}
  ConstTyped(const BFloat16* at) : data(at), dtype(DType::kBFloat16) {}
  ConstTyped(const Float16* at) : data(at), dtype(DType::kFloat16) {}
  ConstTyped(const Typed& other) : data(other.data), dtype(other.dtype) {}
};

struct AdamWArrays {
  float* weight;              // [L] fp32 master
  ConstTyped gradient;        // [L] fp32 or bf16
  Typed exp_avg, exp_avg_sq;  // [L] both fp32 or both bf16
  Typed low_precision = {};   // [L] bf16 or fp16: the new weight, cast; without data: not written
};

struct MomentumArrays {
  ConstTyped gradient;  // [L] fp32 or bf16
  Typed momentum;       // [L] fp32 or bf16
  Typed wire;           // [L] fp32 or bf16: the tensor to orthogonalise
};

struct ApplyArrays {
  float* weight;             // [L] fp32 master
  ConstTyped update;         // [L] fp32 or bf16
  Typed low_precision = {};  // as in AdamWArrays
};

// A part of the arrays of one call: where it begins in each, counted in elements and in the order
// in which the arrays stand, and the code that its alarm sets.
struct Run {
  int64_t at[3];
  int64_t length;
  uint64_t code = 0;
};

// Of a kernel on a GPU.
constexpr int kRunsOfALaunch = 32;

// A word of the memory that the arrays are in. A kernel that writes a NaN or an infinity sets it to
// `code` when it is 0.
struct Alarm {
  uint64_t* word;
  uint64_t code;
};

// Where a run of the arrays begins.
inline Typed behind(const Typed& array, int64_t elements) {
  if (array.data == nullptr) return array;
  return {static_cast<std::byte*>(array.data) + elements * size_of(array.dtype), array.dtype};
}
inline ConstTyped behind(const ConstTyped& array, int64_t elements) {
  return {static_cast<const std::byte*>(array.data) + elements * size_of(array.dtype), array.dtype};
}
inline MomentumArrays behind(const MomentumArrays& arrays, const Run& run) {
  return {behind(arrays.gradient, run.at[0]), behind(arrays.momentum, run.at[1]),
          behind(arrays.wire, run.at[2])};
}
inline ApplyArrays behind(const ApplyArrays& arrays, const Run& run) {
  return {arrays.weight + run.at[0], behind(arrays.update, run.at[1]),
          behind(arrays.low_precision, run.at[2])};
}

// Raise ValueError for element types that a kernel does not take.
void check(const AdamWArrays& arrays);
void check(const MomentumArrays& arrays);
void check(const ApplyArrays& arrays);
void check_wire(const ConstTyped& wire);

}  // namespace zeromuon::ops
