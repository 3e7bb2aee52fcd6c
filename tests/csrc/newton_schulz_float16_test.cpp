// Newton-Schulz whose matrices are in float16 alone, on libtorch's CPU tensors, and what it takes
// of a device.
#include <gtest/gtest.h>

#include "csrc/ops/newton_schulz/work.h"
#include "tests/csrc/newton_schulz_targets.h"

namespace zeromuon::ops {
namespace {

using enum NewtonSchulzForm;

NewtonSchulzPlan float16_plan(int64_t rows, int64_t cols, NewtonSchulzForm form,
                              const CoefficientSet& set) {
  return plan_newton_schulz(rows, cols, {form, NewtonSchulzDType::kFloat16, set}, cuda_target());
}

TEST(Float16NewtonSchulz, MatchesTheDefinitionWideTallAndWithRowsOfAnyLength) {
  at::manual_seed(1);
  for (const char* name : {"jordan", "cubic", "polar_express"}) {
    const CoefficientSet& set = find_coefficient_set(name);
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {64, 64}, {96, 300}, {300, 96}, {77, 201}, {201, 77}, {1, 40}}) {
      const at::Tensor u = at::randn({rows, cols});
      for (const auto form : {kStandard, kGramRestarts}) {
        const NewtonSchulzPlan plan = float16_plan(rows, cols, form, set);
        ASSERT_TRUE(plan.float16_alone());
        EXPECT_LE(relative(run(plan, {u})[0], reference(u, set)), 2e-2)
            << name << " " << plan.arithmetic();
      }
    }
  }
}

TEST(Float16NewtonSchulz, WorksOnTheBlocksOfOneTriangle) {
  at::manual_seed(2);
  const CoefficientSet& set = find_coefficient_set("jordan");
  const at::Tensor u = at::randn({3, 256, 512});
  for (const auto form : {kStandard, kGramRestarts}) {
    NewtonSchulzPlan plan = float16_plan(256, 512, form, set);
    EXPECT_EQ(plan.square.blocks.count, 1);
    plan.gram.blocks = plan.square.blocks = {4};
    plan.scratch_numel = scratch_numel(plan);
    const auto got = run(plan, {u[0], u[1], u[2]});
    for (int i = 0; i < 3; ++i) EXPECT_LE(relative(got[i], reference(u[i], set)), 2e-2);
  }
}

TEST(Float16NewtonSchulz, CutsTheSquaresOfLargeMatrices) {
  at::manual_seed(3);
  const CoefficientSet set = custom_coefficient_set({{3.4445, -4.775, 2.0315}});
  const at::Tensor u = at::randn({2048, 2048});
  const NewtonSchulzPlan plan = float16_plan(2048, 2048, kStandard, set);
  EXPECT_EQ(plan.square.blocks.count, 8);
  EXPECT_EQ(plan.gram.blocks.count, 8);
  EXPECT_LE(relative(run(plan, {u})[0], reference(u, set)), 2e-3);
}

TEST(Float16NewtonSchulz, HasTheSameBitsAloneAndAmongOthers) {
  at::manual_seed(4);
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 11; ++i) inputs.push_back(at::randn({40, 70}));
  const NewtonSchulzPlan plan = float16_plan(40, 70, kGramRestarts, find_coefficient_set("jordan"));
  EXPECT_EQ(plan.batch, 8);
  const auto together = run(plan, inputs);
  for (int i = 0; i < 11; ++i) EXPECT_TRUE(run(plan, {inputs[i]})[0].equal(together[i])) << i;
}

TEST(Float16NewtonSchulz, KeepsZeroAndNeverHidesWhatIsNotFinite) {
  const NewtonSchulzPlan plan = float16_plan(64, 96, kGramRestarts, find_coefficient_set("jordan"));
  at::Tensor broken = at::ones({64, 96});
  broken[1][2] = std::nan("");
  const at::Tensor tiny = at::randn({64, 96});
  const auto got = run(plan, {at::zeros({64, 96}), broken, tiny * 1e-30, tiny * 1e15, tiny});
  EXPECT_TRUE(got[0].eq(0).all().item<bool>());
  EXPECT_FALSE(at::isfinite(got[1]).any().item<bool>());
  EXPECT_LE(relative(got[2], got[4]), 1e-3);
  EXPECT_LE(relative(got[3], got[4]), 1e-3);
}

TEST(Float16NewtonSchulz, IsNotTakenWhereSmallSingularValuesRiseTooFar) {
  EXPECT_FALSE(
      float16_plan(128, 512, kStandard, find_coefficient_set("deepseek_v4")).float16_alone());
  EXPECT_FALSE(float16_plan(128, 512, kGram, find_coefficient_set("jordan")).float16_alone());
  EXPECT_FALSE(float16_plan(128, 512, kStandard, find_coefficient_set("aol_4")).float16_alone());
}

TEST(Float16NewtonSchulz, HasUnitsForTheDiagonalOfEveryPolynomial) {
  at::manual_seed(5);
  const CoefficientSet set = custom_coefficient_set({{4.5, -0.5, 0.05}});  // a is its largest value
  const NewtonSchulzPlan plan = float16_plan(64, 96, kStandard, set);
  ASSERT_TRUE(plan.float16_alone());
  const at::Tensor u = at::randn({64, 96});
  EXPECT_LE(relative(run(plan, {u})[0], reference(u, set)), 2e-3);
}

TEST(Float16NewtonSchulz, RestartsLaterWhereRoundingRisesLess) {
  const auto segments = [](const char* name) {
    return float16_plan(128, 512, kGramRestarts, find_coefficient_set(name)).segments;
  };
  EXPECT_EQ(segments("jordan"), (std::vector<int>{2, 3}));
  EXPECT_EQ(segments("polar_express"), (std::vector<int>{1, 2, 2}));
}

TEST(DeviceWork, OfAStandardFormIsItsPassesAndProducts) {
  const CoefficientSet set = custom_coefficient_set({{2.0, -1.5, 0.5}, {2.0, -1.5, 0.5}});
  const NewtonSchulzPlan plan = float16_plan(4096, 4096, kStandard, set);
  ASSERT_EQ(plan.batch, 1);
  const DeviceWork work = newton_schulz_work(plan, 1);
  const int64_t e = 4096 * 4096;
  // The norm; scaled; twice R with a copy, and P: a triangle is read, and another written.
  EXPECT_EQ(work.bytes, 4 * e + 6 * e + 2 * (3 * e + 2 * e));
  // Norm, scaled; twice two products of blocks with their addresses, two passes and a product.
  EXPECT_EQ(work.launches, 2 + 2 * (2 * 2 + 2 + 1));
  const double cube = 2.0 * 4096 * 4096 * 4096;
  EXPECT_DOUBLE_EQ(work.flops, cube * 2 * (2 * 9.0 / 16 + 1));
  EXPECT_DOUBLE_EQ(work.flops, newton_schulz_flops(plan, true));
}

TEST(DeviceWork, OfRestartsCountsBatchesAsTheyAreRun) {
  const NewtonSchulzPlan plan = float16_plan(1024, 4096, kAuto, find_coefficient_set("jordan"));
  ASSERT_EQ(plan.form, kGramRestarts);
  ASSERT_EQ(plan.batch, 2);
  const DeviceWork one = newton_schulz_work(plan, 1), two = newton_schulz_work(plan, 2);
  // The last product goes to the matrices that there are.
  EXPECT_EQ(two.launches, one.launches + 1);
  EXPECT_EQ(newton_schulz_work(plan, 4).launches, 2 * two.launches);
  EXPECT_EQ(newton_schulz_work(plan, 3).flops, one.flops + two.flops);
  EXPECT_DOUBLE_EQ(two.flops, 2 * newton_schulz_flops(plan, true));
}

TEST(DeviceWork, OfACpuIsNotCounted) {
  const auto plan = plan_newton_schulz(
      64, 64, {kAuto, NewtonSchulzDType::kFloat32, find_coefficient_set("jordan")}, this_cpu());
  EXPECT_EQ(newton_schulz_work(plan, 3).launches, 0);
}

TEST(DeviceRates, LaunchesCountWhereTheyTakeLongerThanTheWork) {
  const DeviceRates rates{.flops_per_s = 1e12, .bytes_per_s = 1e9, .launch_s = 1e-3};
  EXPECT_DOUBLE_EQ(seconds_of({1, 2000000, 1e9}, rates), 3e-3);
  EXPECT_DOUBLE_EQ(seconds_of({5, 2000000, 1e9}, rates), 5e-3);
}

}  // namespace
}  // namespace zeromuon::ops
