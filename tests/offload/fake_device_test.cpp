#include "offload/fake/fake_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <limits>

#include "csrc/base/check.h"
#include "tests/csrc/random_values.h"
#include "tests/csrc/ranks.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

using ops::random_values;
using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

constexpr float kOverflow = std::numeric_limits<float>::infinity();

template <typename T>
T* as(const Memory& memory) {
  return reinterpret_cast<T*>(memory.get());
}

// Bytes of a device, filled from values of the host and read back.
class Array {
 public:
  Array(Device& device, std::vector<float> values)
      : device_(device), values_(std::move(values)), memory_(device.allocate(bytes())) {
    device_.copy_to_device(memory_.get(), values_.data(), bytes());
  }
  float* data() const { return as<float>(memory_); }
  std::vector<float> values() {
    device_.copy_to_host(values_.data(), memory_.get(), bytes());
    return values_;
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(values_.size() * sizeof(float)); }
  Device& device_;
  std::vector<float> values_;
  Memory memory_;
};

class Word {
 public:
  Word(Device& device, uint64_t value) : device_(device), memory_(device.allocate(8)) {
    device_.set_word(at(), value);
  }
  uint64_t* at() const { return as<uint64_t>(memory_); }
  uint64_t value() const {
    uint64_t got = 0;
    device_.read_word(&got, at());
    return got;
  }

 private:
  Device& device_;
  Memory memory_;
};

// Everything that a step does, on any device: what it leaves in memory.
std::vector<std::vector<float>> work_on(Device& device) {
  constexpr int64_t kNumel = 24 * 40;
  Array gradient(device, random_values(kNumel, 1)), momentum(device, random_values(kNumel, 2));
  Array wire(device, random_values(kNumel, 3)), weight(device, random_values(kNumel, 4));
  Array second(device, std::vector<float>(kNumel, 0.5f)), low(device, random_values(kNumel, 5));
  const Word alarm(device, 0);
  device.update_momentum({ops::MomentumKind::kEma, 0.9, true},
                         {gradient.data(), momentum.data(), wire.data()}, kNumel, {alarm.at(), 1});
  device.decode_wire(wire.data(), second.data(), kNumel);
  const ops::NewtonSchulz newton_schulz(
      ops::plan_newton_schulz(24, 40, {.coefficients = ops::find_coefficient_set("jordan")},
                              ops::this_cpu()),
      device.products());
  Array scratch(device, std::vector<float>(newton_schulz.plan().scratch_numel, 0.0f));
  const std::vector<float*> matrices = {second.data()};
  device.orthogonalize(newton_schulz, matrices, scratch.data(), 1);
  device.encode_wire(second.data(), wire.data(), kNumel, {alarm.at(), 2});
  device.apply_update({0.1, 0.01, 0.2}, {weight.data(), wire.data()}, kNumel, {alarm.at(), 3});
  const ops::Typed bfloat16(low.data(), DType::kBFloat16);
  Array variance(device, std::vector<float>(kNumel, 0.25f));
  device.adamw({0.1, 0.9, 0.95, 1e-8, 0.01, 3},
               {weight.data(), gradient.data(), momentum.data(), variance.data(), bfloat16}, kNumel,
               {alarm.at(), 4});
  EXPECT_EQ(alarm.value(), 0u);
  return {momentum.values(), wire.values(), second.values(),
          weight.values(),   low.values(),  variance.values()};
}

TEST(FakeDevice, GivesTheBitsOfTheHost) {
  HostDevice host;
  FakeDevice fake;
  const auto expected = work_on(host), got = work_on(fake);
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(expected[i], got[i]) << "array " << i;
  fake.check();
}

TEST(FakeDevice, AnInfiniteValueSetsTheAlarmOnTheDevice) {
  FakeDevice device;
  const Array values(device, {1, kOverflow}), wire(device, {0, 0});
  const Word alarm(device, 0);
  device.encode_wire(values.data(), wire.data(), 1, {alarm.at(), 3});
  EXPECT_EQ(alarm.value(), 0u);
  device.encode_wire(values.data(), wire.data(), 2, {alarm.at(), 4});
  device.encode_wire(values.data(), wire.data(), 2, {alarm.at(), 5});
  EXPECT_EQ(alarm.value(), 4u);
  device.set_word(alarm.at(), 0);
  device.apply_update({0.1, 0.0, 1.0}, {values.data(), wire.data()}, 2, {alarm.at(), 6});
  EXPECT_EQ(alarm.value(), 6u);
  device.set_word(alarm.at(), 0);
  Array m(device, {0.0f, 0.0f}), v(device, {0.0f, 0.0f});
  device.adamw({0.1, 0.9, 0.95, 1e-8, 0.01, 1}, {values.data(), wire.data(), m.data(), v.data()}, 2,
               {alarm.at(), 7});
  EXPECT_EQ(alarm.value(), 7u);
}

TEST(FakeDevice, AWordIsSpreadOverABufferAndAllAreRead) {
  FakeDevice device;
  const Memory memory = device.allocate(3 * kBlockAlignment);
  const std::vector<int64_t> offsets = {0, kBlockAlignment, 2 * kBlockAlignment};
  device.set_word(as<uint64_t>(memory), 9);
  device.spread_word({memory.get(), offsets});
  std::vector<uint64_t> got(3);
  device.read_words(got.data(), {memory.get(), offsets});
  EXPECT_THAT(got, ::testing::Each(9u));
  device.set_word(reinterpret_cast<uint64_t*>(memory.get() + kBlockAlignment), 4);
  device.read_words(got.data(), {memory.get(), offsets});
  EXPECT_THAT(got, ::testing::ElementsAre(9u, 4u, 9u));
}

TEST(FakeDevice, FreshMemoryIsPoisonedAndAligned) {
  FakeDevice device;
  const Memory memory = device.allocate(100 * sizeof(float));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 64, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(device.for_collectives(memory.get())) % 64, 0u);
  std::vector<float> values(100);
  device.copy_to_host(values.data(), memory.get(), 100 * sizeof(float));
  for (const float value : values) EXPECT_TRUE(std::isnan(value));
}

TEST(FakeDevice, CollectivesFindWhatTheDeviceHolds) {
  FakeDevice device;
  const Memory memory = device.allocate(8);
  const std::vector<uint8_t> out = {1, 2, 3, 4, 5, 6, 7, 8};
  device.copy_to_device(memory.get(), out.data(), 8);
  std::byte* const third = device.for_collectives(memory.get() + 2);
  EXPECT_EQ(third[0], std::byte{3});
  third[0] = std::byte{30};
  std::vector<uint8_t> in(8);
  device.copy_to_host(in.data(), memory.get(), 8);
  EXPECT_EQ(in[2], 30);
}

// A segmentation fault, which the sanitizers turn into their own report and exit code.
bool is_a_fault(int status) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return WIFEXITED(status) && WEXITSTATUS(status) != 0;
#else
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
#endif
}

class FakeDeviceDeathTest : public ::testing::Test {
 protected:
  FakeDeviceDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  FakeDevice device_;
  const Memory memory_ = device_.allocate(64);
};

TEST_F(FakeDeviceDeathTest, TheHostCannotReadItsMemory) {
  EXPECT_EXIT({ [[maybe_unused]] const float read = *as<volatile float>(memory_); }, is_a_fault,
              "");
}

TEST_F(FakeDeviceDeathTest, TheHostCannotWriteItsMemory) {
  EXPECT_EXIT({ *as<volatile float>(memory_) = 1; }, is_a_fault, "");
}

TEST(FakeDevice, ARangeThatLeavesItsAllocationIsAnInternalErrorThatNamesIt) {
  FakeDevice device;
  const Memory memory = device.allocate(100);
  const Memory neighbour = device.allocate(100);
  std::vector<std::byte> host(200);
  EXPECT_THAT(error_of([&] { device.copy_to_device(memory.get() + 96, host.data(), 5); }),
              AllOf(HasSubstr("copy_to_device: destination"), HasSubstr("5 bytes from 96"),
                    HasSubstr("allocation 1 (100 bytes at ")));
  EXPECT_THROW(device.copy_to_host(host.data(), memory.get() + 101, 0), InternalError);
  EXPECT_THROW(device.copy_to_host(host.data(), memory.get(), -1), InternalError);
  device.copy_to_device(memory.get() + 95, host.data(), 5);
  device.copy_to_device(memory.get() + 100, host.data(), 0);
}

TEST(FakeDevice, TheEndOfAnAllocationIsNotTheBeginningOfAnother) {
  FakeDevice device;
  const std::byte host{};
  std::vector<Memory> pages;
  for (int i = 0; i < 8; ++i) pages.push_back(device.allocate(page_bytes()));
  for (const Memory& page : pages) {
    EXPECT_THROW(device.copy_to_device(page.get() + page_bytes(), &host, 1), InternalError);
  }
}

TEST(FakeDevice, EveryArrayOfAKernelIsChecked) {
  FakeDevice device;
  const Array large(device, std::vector<float>(8)), small(device, std::vector<float>(7));
  const Array other(device, std::vector<float>(8)), third(device, std::vector<float>(8));
  const Word alarm(device, 0);
  const ops::MomentumElement element(ops::MomentumKind::kEma, 0.9, false);
  const auto momentum = [&](const Array& g, const Array& m, const Array& w) {
    return error_of([&] {
      device.update_momentum(element, {g.data(), m.data(), w.data()}, 8, {alarm.at(), 1});
    });
  };
  EXPECT_EQ(momentum(large, other, third), "");
  EXPECT_THAT(momentum(small, other, third), HasSubstr("update_momentum: gradient"));
  EXPECT_THAT(momentum(large, small, third), HasSubstr("update_momentum: momentum"));
  EXPECT_THAT(momentum(large, other, small), HasSubstr("update_momentum: wire"));
  uint64_t on_the_host = 0;
  EXPECT_THAT(error_of([&] {
                device.encode_wire(large.data(), other.data(), 8, {&on_the_host, 1});
              }),
              HasSubstr("encode_wire: alarm"));
}

TEST(FakeDevice, AMatrixOrScratchThatIsTooSmallIsFound) {
  FakeDevice device;
  const ops::NewtonSchulz newton_schulz(
      ops::plan_newton_schulz(8, 16, {.coefficients = ops::find_coefficient_set("jordan")},
                              ops::this_cpu()),
      device.products());
  const int64_t scratch_numel = newton_schulz.plan().scratch_numel;
  const Array matrix(device, random_values(128, 1)), small(device, random_values(127, 1));
  const Array scratch(device, std::vector<float>(scratch_numel));
  const auto run = [&](const Array& input, int lanes) {
    const std::vector<float*> matrices = {input.data()};
    return error_of([&] { device.orthogonalize(newton_schulz, matrices, scratch.data(), lanes); });
  };
  EXPECT_EQ(run(matrix, 1), "");
  EXPECT_THAT(run(small, 1), HasSubstr("orthogonalize: matrix"));
  EXPECT_THAT(run(matrix, 2), HasSubstr("orthogonalize: scratch"));
}

TEST(FakeDevice, HostMemoryAndReleasedMemoryAreNotItsOwn) {
  FakeDevice device;
  std::vector<float> host(8), other(8);
  EXPECT_THAT(error_of([&] { device.copy_to_device(host.data(), other.data(), 32); }),
              HasSubstr("is in no allocation of this device: host memory, or released"));
  Memory memory = device.allocate(32);
  std::byte* const released = memory.get();
  memory.reset();
  EXPECT_THROW(device.copy_to_host(host.data(), released, 32), InternalError);
  EXPECT_THROW(device.copy_to_host(host.data(), nullptr, 4), InternalError);
}

TEST(FakeDevice, MixedUpDirectionsAreFound) {
  FakeDevice device;
  const Memory a = device.allocate(32), b = device.allocate(32);
  EXPECT_THAT(error_of([&] { device.copy_to_device(a.get(), b.get(), 32); }),
              AllOf(HasSubstr("copy_to_device: source: expected host memory"),
                    HasSubstr("allocation 2 (32 bytes at ")));
  EXPECT_THROW(device.copy_to_host(b.get() + 31, a.get(), 1), InternalError);
  EXPECT_THROW(device.copy_to_host(device.for_collectives(b.get()), a.get(), 1), InternalError);
  EXPECT_THROW(device.read_word(as<uint64_t>(b), as<uint64_t>(a)), InternalError);
}

TEST(FakeDevice, WhatAGpuCouldNotAddressIsFound) {
  FakeDevice device;
  const Memory memory = device.allocate(64);
  EXPECT_THAT(error_of([&] { device.set_word(reinterpret_cast<uint64_t*>(memory.get() + 4), 1); }),
              HasSubstr("offset 4 in allocation 1 (64 bytes at "));
}

TEST(FakeDevice, AWriteBesideALivingAllocationIsFoundByCheck) {
  for (const int64_t at : {int64_t{-1}, int64_t{100}, int64_t{131}}) {
    FakeDevice device;
    const Memory memory = device.allocate(100);
    std::byte* const behind = device.for_collectives(memory.get());
    behind[0] = behind[99] = std::byte{0};
    EXPECT_NO_THROW(device.check());
    behind[at] = std::byte{0};
    EXPECT_THAT(error_of([&] { device.check(); }),
                HasSubstr(at < 0 ? "1 bytes before and 0 bytes behind allocation 1"
                                 : "0 bytes before and 1 bytes behind allocation 1"));
  }
}

TEST(FakeDevice, AWriteBesideAReleasedAllocationStopsTheNextOperation) {
  FakeDevice device;
  Memory damaged = device.allocate(100);
  const Word word(device, 1);
  device.for_collectives(damaged.get())[100] = std::byte{0};
  damaged.reset();
  EXPECT_THAT(error_of([&] { device.set_word(word.at(), 2); }),
              AllOf(HasSubstr("behind allocation 1"), HasSubstr("seen before set_word")));
  EXPECT_THROW(device.check(), InternalError);
}

TEST(FakeDevice, MemoryMayOutliveIt) {
  auto device = std::make_unique<FakeDevice>();
  Memory memory = device->allocate(10);
  device.reset();
  memory.reset();
}

TEST(FakeDevice, ServesThreadsOnDisjointMemoryWhileOthersAllocate) {
  FakeDevice device;
  const auto errors = testing::on_ranks(4, [&](int thread) {
    for (int round = 0; round < 100; ++round) {
      const std::vector<float> sent(50 + round, static_cast<float>(thread + round));
      Array array(device, sent);
      require(array.values() == sent, "thread ", thread, ", round ", round, ": other values");
    }
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  device.check();
}

}  // namespace
}  // namespace zeromuon::offload
