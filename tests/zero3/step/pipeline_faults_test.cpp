// A stage that fails on one rank stops all, with one cause (Note [All ranks leave together]), and
// what it says of the tensors is true.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "csrc/base/check.h"
#include "tests/csrc/ranks.h"
#include "tests/zero3/step/pipeline_failures.h"

namespace zeromuon::zero3 {
namespace {

using offload::MomentumHome;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;
using Kind = offload::Fault::Kind;

constexpr int kVictim = 1, kRanks = 3;

Way way_of(MomentumHome home, bool fused, bool streams = false) {
  Way way;
  way.world = kRanks;
  way.wire = DType::kBFloat16;
  way.low = at::kBFloat16;
  way.fake = true;
  way.home = home;
  way.fused = fused;
  way.slots = 3;
  way.bucket_bytes = 64;
  way.fake_options.seed = 5;
  way.hands_over = streams;
  return way;
}

// How often the victim begins each stage in a step.
std::map<std::string, int64_t> calls_of(Way way) {
  const StepPlan plan = Job::of(way.world).plan(way);
  const auto board = std::make_shared<comm::InProcessBoard>(way.world);
  const auto calls = std::make_shared<offload::StageCalls>();
  std::vector<std::unique_ptr<RankRun>> runs;
  for (int rank = 0; rank < way.world; ++rank) {
    way.fake_options.calls = rank == kVictim ? calls : nullptr;
    runs.push_back(std::make_unique<RankRun>(way, plan, board, rank));
  }
  testing::on_ranks(way.world, [&](int rank) { runs[rank]->step(0); });
  return calls->counts();
}

// Where call `call` of a stage happens, in the words of an error, as a regular expression.
std::string place_of(const StepPlan& plan, const std::string& stage, int64_t call) {
  if (stage == "closing") return "";
  if (stage == "weights_to_device") return "sub-group [0-3](, bucket [0-9])?, ";
  if (stage == "adamw") return "sub-group [13], ";
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    const auto buckets = static_cast<int64_t>(plan.sub_groups[g].buckets.size());
    if (call <= buckets) return concat("sub-group ", g, ", bucket ", call - 1, ", ");
    call -= buckets;
  }
  throw_internal_error("there is no such call");
}

bool is_collective(const std::string& stage) {
  return stage == "gather_to_owner" || stage == "scatter_to_shards" || stage == "closing";
}

struct FaultyPlace {
  const char* name;
  MomentumHome home;
  bool fused, streams = false;
};

class PipelineFaults : public ::testing::TestWithParam<std::tuple<const char*, FaultyPlace>> {
 protected:
  static void SetUpTestSuite() { Job::of(kRanks); }

  void SetUp() override {
    const FaultyPlace& place = std::get<1>(GetParam());
    way_ = way_of(place.home, place.fused, place.streams);
    plan_ = std::make_unique<StepPlan>(Job::of(kRanks).plan(way_));
    after_ = train(way_, 1);
    calls_ = calls_of(way_)[stage_];
    ASSERT_GE(calls_, 1) << "no step comes to stage " << stage_;
  }

  void expect_one_cause(const Breakdown& result, Kind kind, int64_t call) const {
    const std::string cause =
        concat("step 1, ", place_of(*plan_, stage_, call), "stage ", stage_, ", rank ", kVictim,
               ": injected fault ", kind == Kind::kThrowAfter ? "after" : "before", " call ", call,
               " of ", stage_);
    EXPECT_THAT(cause_of(result.errors[kVictim]), MatchesRegex(cause));
    for (int rank = 0; rank < kRanks; ++rank) {
      // Whoever had left the last collective before the abort learns of it in the next.
      const bool left = result.errors[rank].empty();
      EXPECT_TRUE(!left || (rank != kVictim && kind == Kind::kThrowAfter && stage_ == "closing" &&
                            call == calls_));
      const std::string& error = left ? result.again[rank] : result.errors[rank];
      const std::string text = cause_of(error);
      EXPECT_EQ(left ? "step 1" + text.substr(text.find(',')) : text,
                cause_of(result.errors[kVictim]));
      EXPECT_THAT(error, HasSubstr(concat("(seen from rank ", rank, ": ")));
      if (left) continue;
      EXPECT_THAT(
          result.again[rank],
          HasSubstr("the optimizer is poisoned by an earlier failure: " + result.errors[rank]));
    }
  }

  void expect_true_claims(const Breakdown& result) const {
    for (int rank = 0; rank < kRanks; ++rank) {
      if (result.errors[rank].empty()) {
        EXPECT_EQ(difference(result.tensors[rank], after_[rank]), "");
        continue;
      }
      const Claims claims = claims_of(result.errors[rank]);
      EXPECT_EQ(untruth(way_, rank, claims, Job::of(kRanks).start(rank, way_.low), after_[rank],
                        result.tensors[rank]),
                "")
          << result.errors[rank];
      expect_little_doubt(claims, rank);
    }
  }

  // Only the task that failed is in doubt, and AdamW sub-groups of which some chunks are done.
  void expect_little_doubt(const Claims& claims, int rank) const {
    const bool here = rank == kVictim;
    const auto muon_in = [](const std::set<std::string>& names) {
      return std::count_if(names.begin(), names.end(), [](const std::string& name) {
        return name.find("bucket") != std::string::npos;
      });
    };
    EXPECT_EQ(muon_in(claims.applied_in_doubt), here && stage_ == "apply");
    const bool stored = stage_ == (way_.home == MomentumHome::kStreamed ? "to_host" : "momentum");
    EXPECT_EQ(muon_in(claims.advanced_in_doubt), here && stored);
  }

  void expect_recovery(const Breakdown& result) const {
    for (int rank = 0; rank < kRanks; ++rank) {
      if (is_collective(stage_)) {
        EXPECT_THAT(result.recovery[rank], HasSubstr("injected fault")) << "the group is gone";
      } else {
        EXPECT_EQ(result.recovery[rank], "");
        EXPECT_EQ(difference(result.recovered[rank], after_[rank]), "");
      }
    }
  }

  const std::string stage_ = std::get<0>(GetParam());
  Way way_;
  std::unique_ptr<StepPlan> plan_;
  std::vector<RankTensors> after_;  // of a step without a fault
  int64_t calls_ = 0;
};

TEST_P(PipelineFaults, OnOneRankStopAllWithOneCauseAndTrueClaims) {
  const int64_t middle = (calls_ + 1) / 2;
  std::set<int64_t> at = {middle};
  if (seeds_wanted() > 50) at.insert({1, calls_});  // a sanitizer takes its time
  for (const int64_t call : at) {
    for (const Kind kind : {Kind::kThrowBefore, Kind::kThrowAfter}) {
      SCOPED_TRACE(
          concat(kind == Kind::kThrowAfter ? "after" : "before", " call ", call, " of ", calls_));
      Attempt attempt{way_};
      attempt.way.fake_options.faults = {{stage_, call, kind}};
      const Breakdown result = break_down(attempt);
      expect_one_cause(result, kind, call);
      expect_true_claims(result);
      expect_recovery(result);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    OfEveryStage, PipelineFaults,
    ::testing::Combine(
        ::testing::Values("momentum", "to_device", "gather_to_owner", "newton_schulz",
                          "scatter_to_shards", "to_host", "apply", "adamw", "weights_to_device",
                          "closing"),
        ::testing::Values(FaultyPlace{"on_shard", MomentumHome::kShard, true},
                          FaultyPlace{"on_shard_plain", MomentumHome::kShard, false},
                          FaultyPlace{"on_device_plain", MomentumHome::kDevice, false},
                          FaultyPlace{"streamed", MomentumHome::kStreamed, true},
                          FaultyPlace{"on_device_handed_over", MomentumHome::kDevice, true, true},
                          FaultyPlace{"streamed_handed_over", MomentumHome::kStreamed, true,
                                      true})),
    [](const auto& info) {
      return concat(std::get<0>(info.param), "_momentum_", std::get<1>(info.param).name);
    });

// ---- late stages

// All of it is there, at a time limit of half a second and a stage that takes two: a busy machine
// keeps no other stage so long.
void expect_late(const char* stage, int64_t call, const std::string& place, bool streams = false) {
  Attempt attempt{way_of(MomentumHome::kShard, true, streams)};
  attempt.stage_timeout = std::chrono::milliseconds(500);
  attempt.way.fake_options.faults = {{stage, call, Kind::kDelay, 2000}};
  const Breakdown result = break_down(attempt);
  EXPECT_THAT(cause_of(result.errors[0]),
              StartsWith(concat("step 1, ", place, ", stage ", stage, ", rank ", kVictim,
                                ": no progress for ")))
      << ::testing::PrintToString(result.diagnoses);
  for (const std::string& error : result.errors) {
    EXPECT_EQ(cause_of(error), cause_of(result.errors[0]));
  }
  EXPECT_THAT(result.again, Each(HasSubstr("poisoned")));
  ASSERT_FALSE(result.diagnoses.empty());
  EXPECT_THAT(result.diagnoses[0],
              AllOf(HasSubstr("\ncpu: "), HasSubstr("\nto_device: "), HasSubstr("\ncompute: "),
                    HasSubstr("\nto_host: "), HasSubstr("\ncollective: "), HasSubstr(stage)));
}

TEST(PipelineTimeLimit, ALateCopyFailsOnAllRanksNamingItsStageAndRank) {
  expect_late("to_device", 2, "sub-group 0, bucket 1");
}

TEST(PipelineTimeLimit, ALateCollectiveFailsOnAllRanksNamingItsStageAndRank) {
  expect_late("gather_to_owner", 4, "sub-group 2, bucket 0");
}

// The exchange behind it has begun and waits; it is not what holds the step up.
TEST(PipelineTimeLimit, LateWorkThatWasHandedOverIsNamedAndNotTheExchangeThatWaitsForIt) {
  expect_late("newton_schulz", 2, "sub-group 0, bucket 1", true);
  expect_late("to_device", 2, "sub-group 0, bucket 1", true);
}

// A backend whose aborted exchanges end as if they had succeeded, with whatever the buffers held:
// NCCL's do, when the abort finds them queued.
class QuietCollectives final : public WrappedCollectives {
 public:
  using WrappedCollectives::WrappedCollectives;

 private:
  void do_all_to_all_v(const comm::Exchange& exchange) override {
    try {
      inner().all_to_all_v(exchange);
    } catch (const comm::Aborted&) {
    }
  }
};

TEST(PipelineTimeLimit, AnAbortedCollectiveThatEndsWithoutAnErrorStopsAllRanksAllTheSame) {
  Attempt attempt{way_of(MomentumHome::kShard, true)};
  attempt.stage_timeout = std::chrono::milliseconds(500);
  attempt.way.fake_options.faults = {{"to_device", 2, Kind::kDelay, 2000}};
  attempt.way.wrap_collectives = [](std::unique_ptr<comm::Collectives> inner) {
    return std::make_unique<QuietCollectives>(std::move(inner));
  };
  const Breakdown result = break_down(attempt);
  EXPECT_THAT(cause_of(result.errors[0]),
              StartsWith("step 1, sub-group 0, bucket 1, stage to_device, rank 1: no progress"));
  for (const std::string& error : result.errors) {
    EXPECT_EQ(cause_of(error), cause_of(result.errors[0]));
  }
  EXPECT_THAT(result.again, Each(HasSubstr("poisoned")));
}

TEST(PipelineTimeLimit, AStageThatIsLateButWithinTheLimitOnlyDelays) {
  Attempt attempt{way_of(MomentumHome::kStreamed, true)};
  attempt.stage_timeout = std::chrono::minutes(2);
  for (const char* stage : {"to_device", "scatter_to_shards", "apply"}) {
    attempt.way.fake_options.faults.push_back({stage, 2, Kind::kDelay, 150});
  }
  const Breakdown result = break_down(attempt);
  const std::vector<RankTensors> expected = train(way_of(MomentumHome::kStreamed, true), 1);
  EXPECT_TRUE(result.diagnoses.empty());
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(result.errors[rank], "");
    EXPECT_EQ(difference(result.tensors[rank], expected[rank]), "");
  }
}

// ---- values that are not finite

void expect_poison(const Breakdown& result, const std::string& cause) {
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_THAT(cause_of(result.errors[rank]), MatchesRegex(cause));
    EXPECT_EQ(cause_of(result.errors[rank]), cause_of(result.errors[0]));
    EXPECT_THAT(result.again[rank], HasSubstr("poisoned"));
  }
}

void expect_non_finite(const Attempt& attempt, const std::string& cause) {
  const Breakdown result = break_down(attempt);
  expect_poison(result, cause);
  for (int rank = 0; rank < kRanks; ++rank) {
    const Claims claims = claims_of(result.errors[rank]);
    EXPECT_THAT(claims.applied, Each(::testing::Not(HasSubstr("sub-group 0"))));
    EXPECT_TRUE(same_bits(result.tensors[rank][0].weight,
                          Job::of(kRanks).start(rank, at::kBFloat16)[0].weight));
  }
}

class PipelineValues : public ::testing::TestWithParam<MomentumHome> {};

TEST_P(PipelineValues, ANonFiniteMomentumOnOneRankStopsAllBeforeItIsApplied) {
  for (const bool streams : {false, true}) {
    Attempt attempt{way_of(GetParam(), true, streams)};
    attempt.spoil = [](RankTensors& tensors) {
      tensors[0].momentum[0] = std::numeric_limits<float>::infinity();
    };
    expect_non_finite(attempt,
                      "step 1, sub-group 0, bucket 0, stage gather_to_owner: the momentum of "
                      "\"w0\" has a NaN or infinite value on rank 1");
  }
}

TEST_P(PipelineValues, AnOverflowInsideNewtonSchulzStopsAllBeforeItIsApplied) {
  Attempt attempt{way_of(GetParam(), true)};
  attempt.plan = [](StepPlan& plan) {
    // Grows without bound: finite momentum in, infinite result out.
    for (auto& shape : plan.newton_schulz) {
      for (ops::Triple& triple : shape.coefficients.triples) triple = {1e10, 1e10, 1e10};
    }
  };
  expect_non_finite(attempt,
                    "step 1, sub-group 0, bucket 0, stage scatter_to_shards: the Newton-Schulz "
                    "result of \"w0\" has a NaN or infinite value on rank [0-2]");
}

// What is written and not finite, is known only when it is: all ranks say so, and go on from a
// checkpoint.
void expect_written(const Attempt& attempt, const std::string& cause) {
  const Breakdown result = break_down(attempt);
  expect_poison(result, cause);
  Way way = attempt.way;
  const std::vector<RankTensors> expected = train(way, 1);
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(result.recovery[rank], "");
    EXPECT_EQ(difference(result.recovered[rank], expected[rank]), "");
  }
}

TEST_P(PipelineValues, ANonFiniteStateOfAdamWStopsAllAndNamesItsParameter) {
  for (const auto state : {&SubGroupTensors::exp_avg, &SubGroupTensors::exp_avg_sq}) {
    Attempt attempt{way_of(GetParam(), true)};
    attempt.spoil = [=](RankTensors& tensors) {
      (tensors[1].*state)[0] = std::numeric_limits<float>::infinity();
    };
    expect_written(attempt,
                   "step 1, sub-group 1, stage adamw, rank 1: the update of (one of )?\".*\" wrote "
                   "a NaN or infinite value to the weight, .*");
  }
}

TEST_P(PipelineValues, AnInfiniteWeightOfMuonStopsAllAndNamesItsParameter) {
  Attempt attempt{way_of(GetParam(), true)};
  attempt.spoil = [](RankTensors& tensors) {
    tensors[0].weight[0] = std::numeric_limits<float>::infinity();
  };
  expect_written(attempt,
                 "step 1, sub-group 0, bucket [0-9], stage apply, rank 1: the updated weight of "
                 "\"w0\" has a NaN or infinite value, .*");
}

TEST_P(PipelineValues, AWeightThatItsFloat16CopyCannotHoldStopsAll) {
  Attempt attempt{way_of(GetParam(), true)};
  attempt.way.low = at::kHalf;
  attempt.spoil = [](RankTensors& tensors) { tensors[0].weight[0] = 1e5f; };
  expect_written(attempt,
                 "step 1, sub-group 0, bucket [0-9], stage apply, rank 1: the updated weight of "
                 "\"w0\" has a NaN or infinite value, in its master or in the copy .*");
}

INSTANTIATE_TEST_SUITE_P(OfEveryHome, PipelineValues,
                         ::testing::Values(MomentumHome::kShard, MomentumHome::kDevice,
                                           MomentumHome::kStreamed),
                         [](const auto& info) { return offload::name_of(info.param); });

}  // namespace
}  // namespace zeromuon::zero3
