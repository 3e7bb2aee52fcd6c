// What the tests of Newton-Schulz share.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "csrc/ops/newton_schulz/plan.h"

namespace zeromuon::ops {

// Every kind of machine whose arithmetic this one can carry out: the fewer instructions the table
// counts on, the more of its rows are run.
inline std::vector<ProductTarget> cpu_targets() {
  std::vector<ProductTarget> targets;
  for (int isa = 0; isa <= static_cast<int>(this_cpu().isa); ++isa) {
    targets.push_back({static_cast<CpuIsa>(isa), false, false});
    if (this_cpu().onednn) targets.push_back({static_cast<CpuIsa>(isa), true, false});
  }
  return targets;
}

inline double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

}  // namespace zeromuon::ops
