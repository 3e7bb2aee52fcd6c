// A step takes the memory that its plan says, once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "offload/mapping.h"
#include "tests/csrc/ranks.h"
#include "tests/zero3/step/pipeline_runs.h"

namespace zeromuon::zero3 {
namespace {

using offload::MomentumHome;

struct Ledger {
  std::atomic<int64_t> bytes = 0;  // allocated and not given back, each rounded to a cache line
  std::atomic<int64_t> allocations = 0;
};

// A device that books what is allocated on it.
class BookedDevice final : public offload::Device {
 public:
  BookedDevice(std::unique_ptr<offload::Device> device, Ledger& ledger)
      : device_(std::move(device)), ledger_(ledger) {}

  offload::Memory allocate(int64_t bytes) override {
    const int64_t booked = offload::aligned(bytes);
    ledger_.bytes += booked;
    ++ledger_.allocations;
    offload::Memory memory = device_->allocate(bytes);
    return {memory.get(),
            [memory, booked, &ledger = ledger_](std::byte*) { ledger.bytes -= booked; }};
  }

  void copy_to_device(void* device, const void* host, int64_t bytes) override {
    device_->copy_to_device(device, host, bytes);
  }
  void copy_to_host(void* host, const void* device, int64_t bytes) override {
    device_->copy_to_host(host, device, bytes);
  }
  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, offload::Alarm alarm) override {
    device_->update_momentum(element, arrays, numel, alarm);
  }
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays, int64_t numel,
                    offload::Alarm alarm) override {
    device_->apply_update(element, arrays, numel, alarm);
  }
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays, int64_t numel,
             offload::Alarm alarm) override {
    device_->adamw(element, arrays, numel, alarm);
  }
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   offload::Alarm alarm) override {
    device_->encode_wire(values, wire, numel, alarm);
  }
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override {
    device_->decode_wire(wire, values, numel);
  }
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override {
    device_->orthogonalize(newton_schulz, matrices, scratch, lanes);
  }
  void set_word(uint64_t* at, uint64_t value) override { device_->set_word(at, value); }
  void spread_word(const offload::Words& words) override { device_->spread_word(words); }
  void read_words(uint64_t* host, const offload::Words& words) override {
    device_->read_words(host, words);
  }
  void read_word(uint64_t* host, const uint64_t* at) override { device_->read_word(host, at); }
  ops::Products& products() override { return device_->products(); }
  std::byte* for_collectives(std::byte* buffer) override {
    return device_->for_collectives(buffer);
  }

 private:
  std::unique_ptr<offload::Device> device_;
  Ledger& ledger_;
};

// Bytes of the tensors that a RankRun itself keeps on the device.
int64_t tensor_bytes(const Way& way, int rank) {
  int64_t bytes = 0;
  for (const SubGroupTensors& t : Job::of(way.world).start(rank, way.low)) {
    if (t.low.defined()) bytes += offload::aligned(static_cast<int64_t>(t.low.nbytes()));
    if (way.home != MomentumHome::kDevice || !t.momentum.defined()) continue;
    bytes += offload::aligned(static_cast<int64_t>(t.momentum.nbytes()));
  }
  return bytes;
}

// Takes steps and compares what was allocated with the plan.
void expect_planned_memory(Way way) {
  const StepPlan plan = Job::of(way.world).plan(way);
  const auto board = std::make_shared<comm::InProcessBoard>(way.world);
  std::vector<Ledger> ledgers(way.world);
  const auto errors = testing::on_ranks(way.world, [&](int rank) {
    Way mine = way;
    Ledger& ledger = ledgers[rank];
    mine.wrap = [&](std::unique_ptr<offload::Device> device) {
      return std::make_unique<BookedDevice>(std::move(device), ledger);
    };
    RankRun run(mine, plan, board, rank);
    const offload::BufferSizes sizes = buffer_sizes(plan, rank);
    const offload::StepBuffers& buffers = run.executor().buffers();
    EXPECT_EQ(buffers.host_bytes(), offload::whole_pages(sizes.host_bytes())) << way.text();
    EXPECT_EQ(buffers.pinned_bytes(), buffers.host_bytes()) << way.text();
    EXPECT_EQ(run.executor().memory_warning(), "");
    EXPECT_EQ(ledger.bytes, sizes.device_bytes() + tensor_bytes(way, rank)) << way.text();
    const int64_t allocations = ledger.allocations;
    for (int step = 0; step < Job::kSteps; ++step) run.step(step);
    EXPECT_EQ(ledger.allocations, allocations) << "a step allocates, " << way.text();
  });
  for (int rank = 0; rank < way.world; ++rank) {
    EXPECT_EQ(errors[rank], "");
    EXPECT_EQ(ledgers[rank].bytes, 0) << way.text();
  }
}

TEST(PipelineMemory, IsWhatThePlanSaysAndAllocatedOnce) {
  Way way;
  way.fake = true;
  way.fused = true;
  for (way.world = 1; way.world <= 3; ++way.world) {
    for (const auto home : {MomentumHome::kShard, MomentumHome::kDevice, MomentumHome::kStreamed}) {
      way.home = home;
      way.slots = 1 + (way.world + static_cast<int>(home)) % 4;
      way.wire = way.slots % 2 == 0 ? DType::kFloat32 : DType::kBFloat16;
      way.bucket_bytes = way.slots == 1 ? 64 : 700;
      way.low = way.world == 2 ? std::optional(at::kBFloat16) : std::nullopt;
      expect_planned_memory(way);
    }
  }
}

// Gradients are the host's, which pins them or does not; all else that crosses the link is pinned.
TEST(PipelineMemory, CopiesNothingButGradientsFromMemoryThatIsNotPinned) {
  for (const auto home : {MomentumHome::kShard, MomentumHome::kDevice, MomentumHome::kStreamed}) {
    Way way;
    way.fake = way.fused = true;
    way.home = home;
    way.low = at::kBFloat16;
    const StepPlan plan = Job::of(1).plan(way);
    RankRun run(way, plan, std::make_shared<comm::InProcessBoard>(1), 0);
    const int64_t before = run.registrar()->pageable_copied_bytes();  // of the test's own tensors
    run.step(0);
    int64_t gradients = 0;
    for (const SubGroupPlan& group : plan.sub_groups) {
      for (const PlannedBlock& b : group.blocks) gradients += 4 * b.block.numel();
    }
    EXPECT_EQ(run.registrar()->pageable_copied_bytes() - before,
              home == MomentumHome::kShard ? 0 : gradients)
        << way.text();
  }
}

TEST(PipelineMemory, ThatCannotBePinnedIsSaidWithTheReasonAndStepsGiveTheSameBits) {
  Way way;
  way.fake = way.fused = true;
  way.home = MomentumHome::kStreamed;
  way.fake_options.registration_refused = "the driver's reason";
  RankRun run(way, Job::of(1).plan(way), std::make_shared<comm::InProcessBoard>(1), 0);
  EXPECT_EQ(run.executor().buffers().pinned_bytes(), 0);
  EXPECT_THAT(run.executor().memory_warning(), ::testing::HasSubstr("the driver's reason"));
  for (int step = 0; step < Job::kSteps; ++step) run.step(step);
  EXPECT_EQ(difference(run.tensors(), plain(way)[0]), "");
}

TEST(PipelineMemory, OfAMomentumOutlivesTheExecutor) {
  Way way;
  way.fake = true;
  at::Tensor momentum;
  std::shared_ptr<offload::FakeRegistrar> registrar;
  {
    const StepPlan plan = Job::of(1).plan(way);
    offload::Backend backend = offload::make_fake_backend({});
    registrar = std::dynamic_pointer_cast<offload::FakeRegistrar>(backend.registrar);
    StepExecutor executor(
        plan, {at::kCPU, at::kCPU, way.home}, std::move(backend),
        std::make_unique<comm::InProcessCollectives>(std::make_shared<comm::InProcessBoard>(1), 0));
    momentum = executor.registered_zeros(1000, at::kBFloat16);
  }
  EXPECT_EQ(registrar->registered_bytes(), offload::whole_pages(2000));
  EXPECT_EQ(momentum.count_nonzero().item<int64_t>(), 0);
  momentum.fill_(1);
  momentum.reset();
  EXPECT_EQ(registrar->registered_bytes(), 0);
}

TEST(PipelineMemory, TakesNoPinnedMemoryWhereNothingIsStaged) {
  Way way;
  const StepPlan plan = Job::of(1).plan(way);
  RankRun run(way, plan, std::make_shared<comm::InProcessBoard>(1), 0);
  EXPECT_EQ(run.executor().buffers().host_bytes(), 0);
  EXPECT_EQ(buffer_sizes(plan, 0).host_bytes(), 0);
}

}  // namespace
}  // namespace zeromuon::zero3
