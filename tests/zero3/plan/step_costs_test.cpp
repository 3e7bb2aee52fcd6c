// What a step sends beside the elements.
#include "zero3/plan/step_costs.h"

#include <gtest/gtest.h>

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
  const int64_t records = 2 * kRecordBytes, words = 2 * kFlagBytes;
  // There: 20 bytes and 4 of padding to the owner. Back: the same from it, and 16 that need none.
  EXPECT_EQ(framing_bytes(plan, 0), records + words + 4 + words + 4);
  EXPECT_EQ(framing_bytes(plan, 1), records + words + words);
}

TEST(FramingBytes, AreRecordsAloneWithoutMatrices) {
  const StepPlan plan =
      make_step_plan(options_of(3), {{Role::kAdamW, {{{"b", 9, 3, 0, 0, 0}, true, false, {}}}}});
  EXPECT_EQ(framing_bytes(plan, 2), 3 * kRecordBytes);
}

}  // namespace
}  // namespace zeromuon::zero3
