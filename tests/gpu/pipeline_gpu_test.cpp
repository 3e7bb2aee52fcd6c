// Whole steps with the shard on the CPU and the rest on a GPU: ranks are threads that share it. The
// same bits for every home of the momentum, number of ranks and order; near what the CPU computes;
// and one cause on all ranks when a stage fails.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "csrc/base/check.h"
#include "tests/csrc/ranks.h"
#include "tests/gpu/gpu.h"
#include "tests/zero3/step/pipeline_failures.h"

namespace zeromuon::zero3 {
namespace {

class PipelineOnGpu : public ::testing::Test {};
using offload::MomentumHome;

// What the other ranks read is there: their streams know nothing of this rank's.
class WaitingCollectives final : public WrappedCollectives {
 public:
  using WrappedCollectives::WrappedCollectives;

 private:
  void do_all_to_all_v(const comm::Exchange& exchange) override {
    offload::CudaDevice(testing::kGpu).wait_for_caller();
    inner().all_to_all_v(exchange);
  }
};

Way gpu_way(int world, MomentumHome home) {
  Way way;
  way.world = world;
  way.gpu = testing::has_gpu();
  way.fake = !way.gpu;
  way.fused = true;
  way.home = home;
  way.slots = 3;
  way.bucket_bytes = 512;
  if (way.gpu) way.copy = testing::copy_on_gpu;
  return way;
}

TEST_F(PipelineOnGpu, GivesTheSameBitsForEveryHomeAndCallAndIsNearTheHost) {
  for (int world = 1; world <= 3; ++world) {
    for (const auto low : {std::optional<at::ScalarType>(), std::optional(at::kBFloat16),
                           std::optional(at::kHalf)}) {
      for (const DType wire : {DType::kFloat32, DType::kBFloat16}) {
        Way base = gpu_way(world, MomentumHome::kShard);
        base.low = low;
        base.wire = wire;
        const std::vector<RankTensors> expected = train(base);
        Way host = base;
        host.gpu = host.fake = host.fused = false;
        host.copy = {};
        const std::vector<RankTensors>& on_host = plain(host);
        for (int rank = 0; rank < world; ++rank) {
          for (size_t g = 0; g < expected[rank].size(); ++g) {
            const at::Tensor a = expected[rank][g].weight.nan_to_num();
            const at::Tensor b = on_host[rank][g].weight.nan_to_num();
            EXPECT_LE((a - b).abs().max().item<double>(), wire == DType::kFloat32 ? 1e-4 : 2e-2);
          }
        }
        for (const auto home : {MomentumHome::kDevice, MomentumHome::kStreamed}) {
          for (const bool fused : {true, false}) {
            Way way = base;
            way.home = home;
            way.fused = fused;
            way.slots = fused ? 2 : 1;
            const std::vector<RankTensors> got = train(way);
            for (int rank = 0; rank < world; ++rank) {
              EXPECT_EQ(difference(got[rank], expected[rank]), "") << way.text();
            }
          }
        }
      }
    }
  }
}

// Ten times: an order that is missing shows only where the timing is bad.
TEST_F(PipelineOnGpu, GivesTheSameBitsWhereLanesHandOver) {
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    for (const auto home : {MomentumHome::kShard, MomentumHome::kDevice, MomentumHome::kStreamed}) {
      Way way = gpu_way(1 + round % 3, home);
      way.low = at::kBFloat16;
      const std::vector<RankTensors> expected = train(way);
      way.hands_over = true;
      way.fake_options.seed = static_cast<uint64_t>(round);
      if (way.gpu) {
        way.wrap_collectives = [](std::unique_ptr<comm::Collectives> inner) {
          return std::make_unique<WaitingCollectives>(std::move(inner));
        };
      }
      const std::vector<RankTensors> got = train(way);
      for (int rank = 0; rank < way.world; ++rank) {
        EXPECT_EQ(difference(got[rank], expected[rank]), "") << way.text();
      }
    }
  }
}

TEST_F(PipelineOnGpu, ItsHostBuffersArePinned) {
  const Way way = gpu_way(1, MomentumHome::kStreamed);
  RankRun run(way, Job::of(1).plan(way), std::make_shared<comm::InProcessBoard>(1), 0);
  const offload::StepBuffers& buffers = run.executor().buffers();
  EXPECT_EQ(buffers.pinned_bytes(), buffers.host_bytes()) << run.executor().memory_warning();
  EXPECT_EQ(run.executor().memory_warning(), "");
}

TEST_F(PipelineOnGpu, ANonFiniteMomentumOnOneRankStopsAllWithItsName) {
  for (const auto home : {MomentumHome::kShard, MomentumHome::kDevice, MomentumHome::kStreamed}) {
    Attempt attempt{gpu_way(3, home)};
    attempt.spoil = [](RankTensors& tensors) { tensors[0].momentum.fill_(std::nan("")); };
    const Breakdown result = break_down(attempt);
    for (const std::string& error : result.errors) {
      EXPECT_THAT(error, ::testing::HasSubstr("has a NaN or infinite value on rank 1"));
      EXPECT_EQ(cause_of(error), cause_of(result.errors[0]));
    }
    for (const std::string& error : result.recovery) EXPECT_EQ(error, "");
  }
}

}  // namespace
}  // namespace zeromuon::zero3

namespace zeromuon::testing {

void copy_on_gpu(std::byte* to, const std::byte* from, int64_t bytes) {
  const auto options = at::TensorOptions().dtype(at::kByte).device(kGpu);
  at::from_blob(to, {bytes}, options)
      .copy_(at::from_blob(const_cast<std::byte*>(from), {bytes}, options));
  offload::CudaDevice(kGpu).wait_for_caller();  // of this thread's stream
}

}  // namespace zeromuon::testing
