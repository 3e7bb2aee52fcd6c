// From a DType to a pointer of its type. Everything here has internal linkage, so that the files
// of one instruction set may use it: see Note [One instruction set per file].
#pragma once

#include "csrc/ops/arrays.h"

namespace zeromuon::ops {

// Stands for the element type of an array that is not there.
struct None {};

// Calls body with a pointer to element `at`, for float32 and bfloat16.
template <typename Body>
static auto with_type(const Typed& array, int64_t at, Body body) {
  return array.dtype == DType::kFloat32 ? body(static_cast<float*>(array.data) + at)
                                        : body(static_cast<BFloat16*>(array.data) + at);
}

template <typename Body>
static auto with_type(const ConstTyped& array, int64_t at, Body body) {
  return array.dtype == DType::kFloat32 ? body(static_cast<const float*>(array.data) + at)
                                        : body(static_cast<const BFloat16*>(array.data) + at);
}

// The same with float16.
template <typename Body>
static auto with_any_type(const Typed& array, int64_t at, Body body) {
  if (array.dtype == DType::kFloat16) return body(static_cast<Float16*>(array.data) + at);
  return with_type(array, at, body);
}

template <typename Body>
static auto with_any_type(const ConstTyped& array, int64_t at, Body body) {
  if (array.dtype == DType::kFloat16) return body(static_cast<const Float16*>(array.data) + at);
  return with_type(array, at, body);
}

// with_type for a low-precision output, which may be absent (None*).
template <typename Body>
static auto with_low_precision(const Typed& array, int64_t at, Body body) {
  if (array.data == nullptr) return body(static_cast<None*>(nullptr));
  return array.dtype == DType::kBFloat16 ? body(static_cast<BFloat16*>(array.data) + at)
                                         : body(static_cast<Float16*>(array.data) + at);
}

}  // namespace zeromuon::ops
