// What the tests of Newton-Schulz share.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <memory>
#include <vector>

#include "csrc/ops/newton_schulz/newton_schulz.h"
#include "csrc/ops/newton_schulz/tensor_products.h"

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

// 64-byte aligned memory for `lanes` matrices, poisoned, so that a read of scratch before its first
// write shows.
struct Scratch {
  Scratch(const NewtonSchulzPlan& plan, int lanes)
      : tensor(at::full({lanes * plan.scratch_numel}, std::nan(""))) {}
  float* data() { return tensor.mutable_data_ptr<float>(); }
  at::Tensor tensor;
};

inline std::vector<at::Tensor> run(const NewtonSchulzPlan& plan,
                                   const std::vector<at::Tensor>& inputs, int lanes = 1) {
  const auto products = plan.apply.backend == ProductBackend::kTensors ? make_tensor_products()
                                                                       : make_host_products();
  std::vector<at::Tensor> outputs;
  std::vector<float*> pointers;
  for (const at::Tensor& input : inputs) {
    outputs.push_back(input.clone());
    pointers.push_back(outputs.back().mutable_data_ptr<float>());
  }
  NewtonSchulz(plan, *products).run(pointers, Scratch(plan, lanes).data(), lanes);
  return outputs;
}

// The definition, in fp64.
inline at::Tensor reference(const at::Tensor& input, const CoefficientSet& set) {
  const bool tall = input.size(0) > input.size(1);
  at::Tensor x = (tall ? input.t() : input).to(at::kDouble);
  if (set.scale_rows) {
    x = x / x.matmul(x.t()).abs().sum(1).sqrt().unsqueeze(1);
  } else {
    x = x / (set.safety * x.norm());
  }
  for (const Triple& t : set.triples) {
    const at::Tensor a = x.matmul(x.t());
    x = t.a * x + (t.b * a + t.c * a.matmul(a)).matmul(x);
  }
  return (tall ? x.t() : x).to(at::kFloat);
}

}  // namespace zeromuon::ops
