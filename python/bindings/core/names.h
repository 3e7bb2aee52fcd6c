// Enumerations cross to C++ as their names: a wrong one is a ValueError that lists them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "csrc/base/check.h"
#include "csrc/base/dtype.h"
#include "csrc/ops/cpu_kernels.h"
#include "csrc/ops/elements.h"
#include "csrc/ops/newton_schulz/plan.h"
#include "offload/momentum_home.h"
#include "zero3/plan/step_plan.h"

namespace zeromuon::bindings {

// Of momentum, wire and products; float16 is for low-precision weights alone.
inline DType parse_dtype(const std::string& name) {
  static constexpr const char* kNames[] = {name_of(DType::kFloat32), name_of(DType::kBFloat16)};
  return static_cast<DType>(index_of(kNames, name, "data type"));
}

inline ops::MomentumKind parse_momentum_kind(const std::string& name) {
  static constexpr const char* kNames[] = {"ema", "heavy_ball"};
  return static_cast<ops::MomentumKind>(index_of(kNames, name, "momentum_kind"));
}

inline zero3::CastWeights parse_casts(const std::string& name) {
  static constexpr const char* kNames[] = {"none", "with_shard", "on_device"};
  return static_cast<zero3::CastWeights>(index_of(kNames, name, "casts"));
}

inline zero3::Role parse_role(const std::string& name) {
  static constexpr const char* kNames[] = {"muon", "adamw"};
  return static_cast<zero3::Role>(index_of(kNames, name, "role"));
}

}  // namespace zeromuon::bindings

namespace pybind11::detail {

namespace zm = zeromuon;

template <auto parse>
struct named_caster {
  using Enum = decltype(parse(std::string()));
  PYBIND11_TYPE_CASTER(Enum, const_name("str"));

  bool load(handle given, bool /*convert*/) {
    if (!isinstance<str>(given)) return false;
    value = parse(given.cast<std::string>());
    return true;
  }
};

template <>
struct type_caster<zm::DType> : named_caster<zm::bindings::parse_dtype> {};
template <>
struct type_caster<zm::ops::MomentumKind> : named_caster<zm::bindings::parse_momentum_kind> {};
template <>
struct type_caster<zm::zero3::Role> : named_caster<zm::bindings::parse_role> {};
template <>
struct type_caster<zm::zero3::CastWeights> : named_caster<zm::bindings::parse_casts> {};
template <>
struct type_caster<zm::zero3::Scale> : named_caster<zm::zero3::parse_scale> {};
template <>
struct type_caster<zm::offload::MomentumHome> : named_caster<zm::offload::parse_momentum_home> {};
template <>
struct type_caster<zm::ops::CpuKernels> : named_caster<zm::ops::parse_cpu_kernels> {};
template <>
struct type_caster<zm::ops::NewtonSchulzForm> : named_caster<zm::ops::parse_form> {};
template <>
struct type_caster<zm::ops::NewtonSchulzDType> : named_caster<zm::ops::parse_newton_schulz_dtype> {
};

}  // namespace pybind11::detail
