#include "offload/host_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <limits>
#include <vector>

#include "csrc/base/check.h"
#include "offload/backend.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(HostDevice, MemoryIsAlignedAndWritableToItsEnd) {
  HostDevice device;
  for (const int64_t bytes : {0, 1, 127, 128, 129, 100000}) {
    const Memory memory = device.allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % kBlockAlignment, 0u) << bytes;
    std::fill(memory.get(), memory.get() + bytes, std::byte{1});
  }
  EXPECT_THROW(device.allocate(-1), InternalError);
}

TEST(HostDevice, CopiesAreThereWhenTheCallReturns) {
  HostDevice device;
  const Memory memory = device.allocate(12);
  const std::vector<int> out = {1, 2, 3};
  std::vector<int> in(3);
  device.copy_to_device(memory.get(), out.data(), 12);
  device.copy_to_host(in.data(), memory.get(), 12);
  EXPECT_EQ(in, out);
  device.copy_to_device(nullptr, nullptr, 0);
}

TEST(HostDevice, OnlyTheFirstNonFiniteValueSetsTheAlarm) {
  HostDevice device;
  std::vector<float> values = {1, 2}, wire(2);
  uint64_t word = 0;
  device.encode_wire(values.data(), wire.data(), 2, {&word, 7});
  EXPECT_EQ(word, 0u);
  values[1] = kInfinity;
  device.encode_wire(values.data(), wire.data(), 2, {&word, 8});
  EXPECT_EQ(word, 8u);
  device.encode_wire(values.data(), wire.data(), 2, {&word, 9});
  EXPECT_EQ(word, 8u);
}

TEST(HostDevice, AnInfiniteGradientSetsTheAlarmOfTheMomentum) {
  HostDevice device;
  std::vector<float> gradient = {1, kInfinity}, momentum(2), wire(2);
  uint64_t word = 0;
  const ops::MomentumElement element(ops::MomentumKind::kEma, 0.5, false);
  device.update_momentum(element, {gradient.data(), momentum.data(), wire.data()}, 1, {&word, 5});
  EXPECT_EQ(word, 0u);
  device.update_momentum(element, {gradient.data(), momentum.data(), wire.data()}, 2, {&word, 6});
  EXPECT_EQ(word, 6u);
  EXPECT_THAT(momentum, ElementsAre(0.75f, kInfinity));
}

TEST(HostDevice, WordsStandAtAnyAddress) {
  HostDevice device;
  std::vector<std::byte> bytes(20);
  const std::vector<int64_t> offsets = {1, 11};
  uint64_t got = 0, all[2] = {};
  device.set_word(reinterpret_cast<uint64_t*>(bytes.data() + 1), 0x0102030405060708);
  device.spread_word({bytes.data(), offsets});
  device.read_word(&got, reinterpret_cast<uint64_t*>(bytes.data() + 11));
  EXPECT_EQ(got, 0x0102030405060708u);
  device.read_words(all, {bytes.data(), offsets});
  EXPECT_THAT(all, ElementsAre(got, got));
}

TEST(Backend, OnTheHostOneLaneWorksAndOneSpeaksToOtherProcesses) {
  const Backend backend = make_backend({at::kCPU, at::kCPU}, ops::CpuKernels::kAuto);
  EXPECT_FALSE(backend.staged());
  EXPECT_NE(dynamic_cast<HostDevice*>(backend.compute.get()), nullptr);
  EXPECT_EQ(backend.lanes.states(), "cpu: idle\ncollective: idle\n");
  for (const LaneKind kind : {LaneKind::kToDevice, LaneKind::kCompute, LaneKind::kToHost}) {
    EXPECT_EQ(&backend.lanes[kind], &backend.lanes[LaneKind::kCpu]);
  }
}

TEST(Backend, ADeviceThatTheBuildCannotUseIsAValueErrorThatSaysWhatToDo) {
  EXPECT_THAT(testing::error_of([] {
                make_backend({at::kCPU, at::Device("meta")}, ops::CpuKernels::kAuto);
              }),
              HasSubstr("cannot work on meta, whose code was not compiled"));
}

#ifdef ZEROMUON_WITH_CUDA
// Making one calls no CUDA: a lane's stream is made in its thread, where an error waits for a task.
TEST(Backend, OfAGpuPinsWhatIsCopied) {
  const at::Device gpu(at::kCUDA, 0);
  EXPECT_NE(make_backend({at::kCPU, gpu}, ops::CpuKernels::kAuto).registrar, nullptr);
  EXPECT_NE(make_backend({gpu, gpu}, ops::CpuKernels::kAuto).registrar, nullptr);
}
#endif

TEST(Backend, TheCpuWorksWithTheThreadsThatItIsTold) {
  for (const int threads : {1, 3}) {
    const Backend backend = make_backend({at::kCPU, at::kCPU}, ops::CpuKernels::kAuto, threads);
    int found = 0;
    testing::run_on(backend.lanes[LaneKind::kCpu],
                    testing::task("count", [&] { found = omp_get_max_threads(); }));
    EXPECT_EQ(found, threads);
  }
}

}  // namespace
}  // namespace zeromuon::offload
