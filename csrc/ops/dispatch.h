// From a DType to a pointer of its type. Everything here has internal linkage, so that the files
// of one instruction set may use it: see Note [One instruction set per file].
#pragma once

#include "csrc/ops/arrays.h"

namespace zeromuon::ops {

// Stands for the element type of an array that is not there.
struct None {};

template <typename T>
static T* element(const Typed& array, int64_t at) {
  return static_cast<T*>(array.data) + at;
}
template <typename T>
static const T* element(const ConstTyped& array, int64_t at) {
  return static_cast<const T*>(array.data) + at;
}

// Calls body with a pointer to element `at`, for float32 and bfloat16.
template <typename Array, typename Body>
static auto with_type(const Array& array, int64_t at, Body body) {
  return array.dtype == DType::kFloat32 ? body(element<float>(array, at))
                                        : body(element<BFloat16>(array, at));
}

// The same with float16.
template <typename Array, typename Body>
static auto with_any_type(const Array& array, int64_t at, Body body) {
  if (array.dtype == DType::kFloat16) return body(element<Float16>(array, at));
  return with_type(array, at, body);
}

// with_type for a low-precision output, which may be absent (None*).
template <typename Body>
static auto with_low_precision(const Typed& array, int64_t at, Body body) {
  if (array.data == nullptr) return body(static_cast<None*>(nullptr));
  return array.dtype == DType::kBFloat16 ? body(element<BFloat16>(array, at))
                                         : body(element<Float16>(array, at));
}

// Calls body with pointers to element `at` of all arrays, in the order of their struct.
template <typename Body>
static auto with_types(const AdamWArrays& arrays, int64_t at, Body body) {
  return with_type(arrays.gradient, at, [&](auto* gradient) {
    return with_type(arrays.exp_avg, at, [&](auto* m) {
      return with_low_precision(arrays.low_precision, at, [&](auto* low) {
        auto* v = static_cast<decltype(m)>(arrays.exp_avg_sq.data) + at;
        return body(arrays.weight + at, gradient, m, v, low);
      });
    });
  });
}

template <typename Body>
static auto with_types(const MomentumArrays& arrays, int64_t at, Body body) {
  return with_type(arrays.gradient, at, [&](auto* gradient) {
    return with_type(arrays.momentum, at, [&](auto* momentum) {
      return with_type(arrays.wire, at, [&](auto* wire) { return body(gradient, momentum, wire); });
    });
  });
}

template <typename Body>
static auto with_types(const ApplyArrays& arrays, int64_t at, Body body) {
  return with_type(arrays.update, at, [&](auto* update) {
    return with_low_precision(arrays.low_precision, at,
                              [&](auto* low) { return body(arrays.weight + at, update, low); });
  });
}

}  // namespace zeromuon::ops
