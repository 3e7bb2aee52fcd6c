// The real pipeline on a virtual clock: it always comes to an end.
#include "zero3/played/played_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string_view>

#include "tests/zero3/step/step_model.h"
#include "zero3/plan/step_costs.h"

namespace zeromuon::zero3 {
namespace {

class Dice {
 public:
  explicit Dice(uint64_t seed) : generator_(seed) {}
  int between(int low, int high) { return std::uniform_int_distribution(low, high)(generator_); }
  // Over three decades.
  double around(double middle) {
    return middle * std::pow(10.0, std::uniform_real_distribution(-1.5, 1.5)(generator_));
  }

 private:
  std::mt19937_64 generator_;
};

StepPlan plan_of(Dice& dice) {
  const int world = dice.between(1, 5);
  std::vector<SubGroupSpec> groups;
  for (int g = dice.between(1, 4); g-- > 0;) {
    std::vector<Shape> shapes;
    for (int k = dice.between(1, 9); k-- > 0;) {
      shapes.push_back({dice.between(1, 60), dice.between(1, 60)});
    }
    const Role role = groups.empty() || dice.between(0, 2) > 0 ? Role::kMuon : Role::kAdamW;
    groups.push_back(Model(shapes, 1).spec(role, world));
  }
  PlanOptions o = options(world, dice.between(0, 1) == 0 ? DType::kFloat32 : DType::kBFloat16,
                          dice.between(1, 8000));
  o.slots = dice.between(1, 5);
  o.flow = {true, static_cast<offload::MomentumHome>(dice.between(0, 2)), DType::kFloat32,
            static_cast<CastWeights>(dice.between(0, 2))};
  return make_step_plan(o, groups);
}

offload::Rates rates_of(Dice& dice) {
  return {dice.around(3e10), dice.around(2e10), dice.around(2e10), dice.around(1e12),
          dice.around(1e10), dice.around(1e-5), dice.around(1e-6)};
}

int64_t buckets_of(const StepPlan& plan) {
  int64_t buckets = 0;
  for (const SubGroupPlan& group : plan.sub_groups) {
    buckets += static_cast<int64_t>(group.buckets.size());
  }
  return buckets;
}

// The lanes are busy for as long as the plan says, but for each task's rounding to a nanosecond.
void expect_busy_as_planned(const StepPlan& plan, const offload::Rates& rates,
                            const PlayedStep& step) {
  double longest = 0;
  size_t tasks = 0;
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    const auto busy = busy_seconds(plan, rank, rates);
    // A collective takes every rank as long as the one with most to send.
    for (int lane = 0; lane < static_cast<int>(offload::LaneKind::kCollective); ++lane) {
      longest = std::max(longest, busy[lane]);
    }
    tasks = std::max(tasks, step.events[rank].size());
  }
  double played = 0;
  for (const auto& events : step.events) {
    std::array<double, offload::kLaneKinds> busy{};
    for (const TraceEvent& e : events) {
      if (e.lane == offload::LaneKind::kCollective) continue;
      double& lane = busy[static_cast<int>(e.lane)];
      lane += 1e-9 * static_cast<double>(e.end_ns - e.begin_ns);
      played = std::max(played, lane);
    }
  }
  EXPECT_NEAR(played, longest, 1e-9 * static_cast<double>(tasks));
}

TEST(PlayedStep, ComesToAnEndWithEveryBucketForAnyPlanAndRates) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Dice dice(seed);
    const StepPlan plan = plan_of(dice);
    const bool fused = dice.between(0, 3) > 0;
    const offload::Rates rates = rates_of(dice);
    const PlayedStep step = play_step(plan, rates, fused);
    EXPECT_GE(step.makespan_s, step.lower_bound_s) << "seed " << seed;
    EXPECT_GT(step.lower_bound_s, 0) << "seed " << seed;
    if (fused) expect_busy_as_planned(plan, rates, step);
    for (const auto& events : step.events) {
      const auto applied = std::count_if(events.begin(), events.end(), [](const TraceEvent& e) {
        return std::string_view(e.stage) == "apply";
      });
      EXPECT_EQ(applied, buckets_of(plan)) << "seed " << seed;
    }
  }
}

TEST(PlayedStep, TakesTheSameTimeEveryTime) {
  const auto makespan = [] {
    Dice dice(3);
    const StepPlan plan = plan_of(dice);
    return play_step(plan, rates_of(dice), true).makespan_s;
  };
  EXPECT_EQ(makespan(), makespan());
}

}  // namespace
}  // namespace zeromuon::zero3
