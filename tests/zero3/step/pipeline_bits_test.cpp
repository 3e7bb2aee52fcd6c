// Whatever way a step takes, its results have the bits of the plain path.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "csrc/base/check.h"
#include "tests/zero3/step/pipeline_runs.h"

namespace zeromuon::zero3 {
namespace {

using offload::MomentumHome;

// Bytes that make a bucket of every matrix, of some, and of all.
const std::vector<int64_t> kBucketBytes = {64, 512, 1 << 20};
const std::vector<std::optional<at::ScalarType>> kCasts = {std::nullopt, at::kBFloat16, at::kHalf};

void expect_plain_bits(const Way& way) {
  const std::vector<RankTensors>& expected = plain(way);
  const std::vector<RankTensors> got = train(way);
  for (int rank = 0; rank < way.world; ++rank) {
    EXPECT_EQ(difference(got[rank], expected[rank]), "") << "rank " << rank << ", " << way.text();
  }
}

struct Placed {
  const char* name;
  bool fake;
  MomentumHome home;
};

class Pipeline : public ::testing::TestWithParam<Placed> {};

TEST_P(Pipeline, GivesTheBitsOfThePlainPath) {
  Way way;
  way.fake = GetParam().fake;
  way.home = GetParam().home;
  int number = 0;
  for (way.world = 1; way.world <= 3; ++way.world) {
    for (way.wire = DType::kFloat32;; way.wire = DType::kBFloat16) {
      for (way.slots = 1; way.slots <= 4; ++way.slots) {
        for (const bool fused : {false, true}) {
          way.fused = fused;
          way.low = kCasts[++number % kCasts.size()];
          way.bucket_bytes = kBucketBytes[number / 2 % kBucketBytes.size()];
          way.folds_scale = number % 4 < 2;
          way.decay = number % 5 < 2 ? ops::Decay::kCautious : ops::Decay::kDecoupled;
          way.fake_options.seed = static_cast<uint64_t>(number);
          expect_plain_bits(way);
        }
      }
      if (way.wire == DType::kBFloat16) break;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    EveryPlacement, Pipeline,
    ::testing::Values(Placed{"host", false, MomentumHome::kShard},
                      Placed{"momentum_on_shard", true, MomentumHome::kShard},
                      Placed{"momentum_on_device", true, MomentumHome::kDevice},
                      Placed{"momentum_streamed", true, MomentumHome::kStreamed}),
    [](const auto& info) { return info.param.name; });

// Copies of the gradients, momenta and Newton-Schulz are then under way when the next stage is
// given.
TEST(PipelineWithStreams, GivesTheBitsOfThePlainPath) {
  Way way;
  way.fake = way.fused = true;
  way.hands_over = true;
  for (way.world = 1; way.world <= 3; ++way.world) {
    for (uint64_t seed = 0; seed < 12 && !HasFailure(); ++seed) {
      way.home = static_cast<MomentumHome>(seed % 3);
      way.slots = 1 + static_cast<int>(seed % 4);
      way.bucket_bytes = kBucketBytes[seed / 4 % kBucketBytes.size()];
      way.low = kCasts[seed / 2 % kCasts.size()];
      way.fake_options.seed = seed;
      expect_plain_bits(way);
    }
  }
}

TEST(PipelineSteps, ChangeEveryTensorThatTheyAreGiven) {
  Way way;
  way.low = at::kBFloat16;
  const RankTensors &after = plain(way)[0], before = Job::of(1).start(0, way.low);
  for (size_t g = 0; g < after.size(); ++g) {
    for (const auto member :
         {&SubGroupTensors::weight, &SubGroupTensors::momentum, &SubGroupTensors::exp_avg,
          &SubGroupTensors::exp_avg_sq, &SubGroupTensors::low}) {
      if ((before[g].*member).defined()) {
        EXPECT_FALSE(same_bits(before[g].*member, after[g].*member)) << "sub-group " << g;
      }
    }
  }
}

TEST(PipelineSteps, TakeCautiousDecayForBothRoles) {
  Way way;
  const RankTensors& decoupled = plain(way)[0];
  way.decay = ops::Decay::kCautious;
  const RankTensors& cautious = plain(way)[0];
  for (size_t g = 0; g < cautious.size(); ++g) {
    EXPECT_FALSE(same_bits(decoupled[g].weight, cautious[g].weight)) << "sub-group " << g;
  }
}

// ---- by chance

Way chosen_by(uint64_t seed) {
  std::mt19937_64 generator(seed);
  const auto below = [&](uint64_t count) { return static_cast<int>(generator() % count); };
  Way way;
  way.world = 1 + below(3);
  way.wire = below(2) == 0 ? DType::kFloat32 : DType::kBFloat16;
  way.low = kCasts[below(3)];
  way.fake = true;
  way.home = static_cast<MomentumHome>(below(3));
  way.fused = below(4) > 0;
  way.folds_scale = below(2) == 0;
  way.slots = 1 + below(4);
  way.bucket_bytes = 32 + below(1500);
  way.fake_options.seed = seed;
  if (below(4) == 0) way.decay = ops::Decay::kCautious;
  way.hands_over = below(2) == 0;
  return way;
}

// Delays of each seed are its own; ZEROMUON_SEEDS is how many there are.
TEST(FakeDevicePipeline, GivesTheBitsOfThePlainPathForEverySeed) {
  const int seeds = seeds_wanted();
  for (int seed = 1; seed <= seeds && !HasFailure(); ++seed) {
    expect_plain_bits(chosen_by(static_cast<uint64_t>(seed)));
  }
  RecordProperty("seeds", seeds);
}

}  // namespace
}  // namespace zeromuon::zero3
