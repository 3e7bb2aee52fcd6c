// A plan keeps the limit on its buffers, or names the least that works.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "csrc/base/check.h"
#include "zero3/plan/bucket_route.h"

namespace zeromuon::zero3 {
namespace {

using offload::MomentumHome;
using ::testing::HasSubstr;

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{64, 64}, {96, 32}, {48, 160}, {64, 64},
                                                          {64, 64}, {30, 7},  {128, 64}, {64, 64}};

std::vector<SubGroupSpec> groups(int world) {
  SubGroupSpec muon{Role::kMuon, {}};
  int64_t offset = 0;
  for (int layer = 0; layer < 4; ++layer) {
    for (const auto& [rows, cols] : kShapes) {
      const int64_t chunk = (rows * cols + world - 1) / world;
      muon.params.push_back(
          {{concat("w", offset), rows * cols, chunk, offset, rows, cols}, true, false, {}});
      offset += chunk;
    }
  }
  return {muon};
}

PlanOptions options(int world, MomentumHome home, int64_t limit) {
  PlanOptions o;
  o.world_size = world;
  o.newton_schulz.coefficients = ops::find_coefficient_set("jordan");
  o.flow = {true, home, DType::kFloat32, CastWeights::kNone};
  o.max_bytes_in_flight = limit;
  return o;
}

int64_t most_bytes(const StepPlan& plan) {
  int64_t most = 0;
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    most = std::max(most, buffer_sizes(plan, rank).total_bytes());
  }
  return most;
}

// The number that the refusal of a limit of one byte names.
int64_t least_bytes(int world, MomentumHome home) {
  try {
    make_step_plan(options(world, home, 1), groups(world));
  } catch (const ValueError& error) {
    const std::string text = error.what(), before = "the least that works is ";
    return std::stoll(text.substr(text.find(before) + before.size()));
  }
  return 0;
}

class BufferSizes : public ::testing::TestWithParam<std::tuple<int, MomentumHome>> {
 protected:
  const int world_ = std::get<0>(GetParam());
  const MomentumHome home_ = std::get<1>(GetParam());
};

TEST_P(BufferSizes, KeepEveryLimitThatCanBeKept) {
  const int64_t least = least_bytes(world_, home_);
  const int64_t most = most_bytes(make_step_plan(options(world_, home_, 0), groups(world_)));
  ASSERT_GT(least, 0);
  ASSERT_GT(most, 2 * least);
  for (int64_t limit = least; limit < most + least; limit += least / 4) {
    const StepPlan plan = make_step_plan(options(world_, home_, limit), groups(world_));
    EXPECT_LE(most_bytes(plan), limit);
  }
}

TEST_P(BufferSizes, BelowTheLeastAreRefusedWithTheNumberThatWorks) {
  const int64_t least = least_bytes(world_, home_);
  EXPECT_EQ(most_bytes(make_step_plan(options(world_, home_, least), groups(world_))), least);
  for (const int64_t limit : {least - 1, least / 2}) {
    try {
      make_step_plan(options(world_, home_, limit), groups(world_));
      ADD_FAILURE() << limit << " was accepted";
    } catch (const ValueError& error) {
      EXPECT_THAT(error.what(), HasSubstr(concat("max_bytes_in_flight: got ", limit,
                                                 ", the least that works is ", least, " bytes")));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OfEveryPlacement, BufferSizes,
                         ::testing::Combine(::testing::Values(1, 2, 3),
                                            ::testing::Values(MomentumHome::kShard,
                                                              MomentumHome::kDevice,
                                                              MomentumHome::kStreamed)),
                         [](const auto& info) {
                           return concat("ranks_", std::get<0>(info.param), "_momentum_",
                                         offload::name_of(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace zeromuon::zero3
