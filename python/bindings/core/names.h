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
  return index_of(kNames, name, "momentum_kind") == 0 ? ops::MomentumKind::kEma
                                                      : ops::MomentumKind::kHeavyBall;
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

template <typename Enum, Enum (*parse)(const std::string&)>
struct named_caster {
  PYBIND11_TYPE_CASTER(Enum, const_name("str"));

  bool load(handle given, bool /*convert*/) {
    if (!isinstance<str>(given)) return false;
    value = parse(given.cast<std::string>());
    return true;
  }
};

template <>
struct type_caster<zeromuon::DType>
    : named_caster<zeromuon::DType, zeromuon::bindings::parse_dtype> {};
template <>
struct type_caster<zeromuon::ops::MomentumKind>
    : named_caster<zeromuon::ops::MomentumKind, zeromuon::bindings::parse_momentum_kind> {};
template <>
struct type_caster<zeromuon::zero3::Role>
    : named_caster<zeromuon::zero3::Role, zeromuon::bindings::parse_role> {};
template <>
struct type_caster<zeromuon::zero3::CastWeights>
    : named_caster<zeromuon::zero3::CastWeights, zeromuon::bindings::parse_casts> {};
template <>
struct type_caster<zeromuon::zero3::Scale>
    : named_caster<zeromuon::zero3::Scale, zeromuon::zero3::parse_scale> {};
template <>
struct type_caster<zeromuon::offload::MomentumHome>
    : named_caster<zeromuon::offload::MomentumHome, zeromuon::offload::parse_momentum_home> {};
template <>
struct type_caster<zeromuon::ops::CpuKernels>
    : named_caster<zeromuon::ops::CpuKernels, zeromuon::ops::parse_cpu_kernels> {};
template <>
struct type_caster<zeromuon::ops::NewtonSchulzForm>
    : named_caster<zeromuon::ops::NewtonSchulzForm, zeromuon::ops::parse_form> {};
template <>
struct type_caster<zeromuon::ops::NewtonSchulzDType>
    : named_caster<zeromuon::ops::NewtonSchulzDType, zeromuon::ops::parse_newton_schulz_dtype> {};

}  // namespace pybind11::detail
