// What a step sends beside the elements.
#include "zero3/plan/step_costs.h"

#include <gtest/gtest.h>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/work.h"

namespace zeromuon::zero3 {
namespace {

PlanOptions options_of(int world_size) {
  PlanOptions options;
  options.world_size = world_size;
  options.newton_schulz.coefficients = ops::find_coefficient_set("jordan");
  return options;
}

// A 3x3 matrix in fp32 over two ranks, 5 and 4 elements, owned by rank 0.
StepPlan plan_of_nine_elements() {
  return make_step_plan(options_of(2), {{Role::kMuon, {{{"w", 9, 5, 0, 3, 3}, true, false, {}}}}});
}

TEST(FramingBytes, AreFlagWordsPaddingOfSegmentsAndRecords) {
  const StepPlan plan = plan_of_nine_elements();
  ASSERT_EQ(plan.sub_groups[0].blocks[0].owner, 0);
  const int64_t records = 2 * kRecordBytes, head = kSegmentAlignment;
  // To the owner, and back from it: 20 and 16 bytes, a head before each and what fills a line. To
  // and from rank 1, which owns nothing, a head.
  const int64_t of_20 = 2 * head - 20, of_16 = 2 * head - 16;
  EXPECT_EQ(framing_bytes(plan, 0), records + (of_20 + head) + (of_20 + of_16));
  EXPECT_EQ(framing_bytes(plan, 1), records + (of_16 + head) + 2 * head);
}

TEST(FramingBytes, AreRecordsAloneWithoutMatrices) {
  const StepPlan plan =
      make_step_plan(options_of(3), {{Role::kAdamW, {{{"b", 9, 3, 0, 0, 0}, true, false, {}}}}});
  EXPECT_EQ(framing_bytes(plan, 2), 3 * kRecordBytes);
}

TEST(NewtonSchulzCost, OfAGpuCountsLaunchesAndBytesOfMatricesAndTheirWay) {
  PlanOptions options = options_of(1);
  options.target = ops::cuda_target();
  options.newton_schulz.dtype = ops::NewtonSchulzDType::kFloat16;
  const StepPlan plan = make_step_plan(
      options, {{Role::kMuon, {{{"w", 64 * 96, 64 * 96, 0, 64, 96}, true, false, {}}}}});
  const offload::Cost cost = newton_schulz_cost(plan, 0);
  const ops::DeviceWork work = ops::newton_schulz_work(plan.newton_schulz[0], 1);
  EXPECT_GT(work.launches, 20);
  // A run each way, and the flag words.
  EXPECT_EQ(cost.launches, work.launches + 4);
  EXPECT_EQ(cost.device_bytes, work.bytes + 2 * 8 * 64 * 96);
  EXPECT_EQ(cost.flops, work.flops);
  EXPECT_NE(plan.table().find(concat(cost.launches, " launches")), std::string::npos);
}

TEST(NewtonSchulzCost, OfACpuIsItsOperations) {
  const StepPlan plan = plan_of_nine_elements();
  const offload::Cost cost = newton_schulz_cost(plan, 0);
  EXPECT_EQ(cost.launches, 0);
  EXPECT_EQ(cost.device_bytes, 0);
  EXPECT_EQ(cost.flops, plan.sub_groups[0].blocks[0].flops);
  EXPECT_EQ(plan.table().find("launches"), std::string::npos);
}

}  // namespace
}  // namespace zeromuon::zero3
