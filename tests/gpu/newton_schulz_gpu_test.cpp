// Newton-Schulz on a GPU against its definition in double, for all forms, data types and sets; the
// same bits alone and among others; how long it takes.
#include <ATen/ATen.h>

#include <chrono>

#include "tests/csrc/newton_schulz_targets.h"
#include "tests/gpu/gpu.h"

namespace zeromuon::ops {
namespace {

class BatchedNewtonSchulz : public ::testing::Test {};
using NewtonSchulzTimes = testing::OnlyOnGpu;
using enum NewtonSchulzForm;

at::TensorOptions there(at::ScalarType type) {
  return at::TensorOptions().dtype(type).device(testing::place());
}

NewtonSchulzPlan plan_of(int64_t rows, int64_t cols, NewtonSchulzForm form, NewtonSchulzDType dtype,
                         const char* set = "jordan") {
  return plan_newton_schulz(rows, cols, {form, dtype, find_coefficient_set(set)}, cuda_target());
}

// In place.
void run_there(const NewtonSchulzPlan& plan, const std::vector<at::Tensor>& matrices) {
  const auto products = testing::make_products();
  const at::Tensor scratch = at::full({plan.scratch_numel}, std::nan(""), there(at::kFloat));
  std::vector<float*> pointers;
  for (const at::Tensor& m : matrices) pointers.push_back(m.mutable_data_ptr<float>());
  NewtonSchulz(plan, *products).run(pointers, scratch.mutable_data_ptr<float>(), 1);
}

std::vector<std::pair<int64_t, int64_t>> shapes() {
  if (!testing::has_gpu()) return {{64, 64}, {64, 256}, {300, 64}};
  return {{64, 64},   {64, 256},    {300, 64},    {512, 512},
          {513, 300}, {1024, 4096}, {4096, 1024}, {2048, 2048}};
}

TEST_F(BatchedNewtonSchulz, MatchesTheDefinitionInEveryFormAndDataType) {
  at::manual_seed(1);
  for (const auto& [rows, cols] : shapes()) {
    const at::Tensor u = at::randn({rows, cols}, there(at::kFloat));
    for (const char* name : {"jordan", "polar_express", "aol_4"}) {
      const at::Tensor exact = reference(u, find_coefficient_set(name));
      for (const auto form : {kStandard, kGram, kGramRestarts}) {
        for (const auto& [dtype, bar] : {std::pair{NewtonSchulzDType::kFloat32, 5e-3},
                                         std::pair{NewtonSchulzDType::kFloat16, 2e-2},
                                         std::pair{NewtonSchulzDType::kBFloat16, 6e-2}}) {
          if (dtype == NewtonSchulzDType::kBFloat16 && std::string(name) != "jordan") continue;
          const NewtonSchulzPlan plan = plan_of(rows, cols, form, dtype, name);
          const at::Tensor got = u.clone();
          run_there(plan, {got});
          EXPECT_LE(relative(got, exact), bar) << plan.arithmetic() << " " << name;
        }
      }
    }
  }
}

TEST_F(BatchedNewtonSchulz, GivesTheSameBitsAgainAndAmongOthers) {
  at::manual_seed(2);
  for (const auto& [rows, cols] : shapes()) {
    for (const auto dtype : {NewtonSchulzDType::kFloat32, NewtonSchulzDType::kFloat16}) {
      const NewtonSchulzPlan plan = plan_of(rows, cols, kAuto, dtype);
      std::vector<at::Tensor> inputs, together;
      for (int i = 0; i < 5; ++i) inputs.push_back(at::randn({rows, cols}, there(at::kFloat)));
      for (const at::Tensor& u : inputs) together.push_back(u.clone());
      run_there(plan, together);
      for (int i = 0; i < 5; ++i) {
        for (int again = 0; again < 2; ++again) {
          const at::Tensor alone = inputs[i].clone();
          run_there(plan, {alone});
          EXPECT_TRUE(alone.equal(together[i])) << plan.arithmetic() << " " << i;
        }
      }
    }
  }
}

TEST_F(NewtonSchulzTimes, OfLargeMatrices) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1024, 4096}, {4096, 4096}, {4096, 14336}}) {
    for (const auto dtype : {NewtonSchulzDType::kBFloat16, NewtonSchulzDType::kFloat16}) {
      const NewtonSchulzPlan plan = plan_of(rows, cols, kAuto, dtype);
      const at::Tensor u = at::randn({rows, cols}, there(at::kFloat));
      double best = 1e9;
      for (int i = 0; i < 5; ++i) {
        const at::Tensor m = u.clone();
        offload::CudaDevice device(testing::kGpu);
        const offload::Memory scratch = device.allocate(4 * plan.scratch_numel);
        const NewtonSchulz work(plan, device.products());
        float* const at[] = {m.mutable_data_ptr<float>()};
        device.wait_for_caller();
        const auto begin = std::chrono::steady_clock::now();
        device.orthogonalize(work, at, reinterpret_cast<float*>(scratch.get()), 1);
        device.wait_for_caller();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
        best = std::min(best, taken.count());
      }
      std::printf("%s: %.2f ms, %.0f TFLOP/s\n", plan.arithmetic().c_str(), 1e3 * best,
                  1e-12 * newton_schulz_flops(plan, true) / best);
    }
  }
}

}  // namespace
}  // namespace zeromuon::ops
