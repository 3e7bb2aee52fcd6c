#include "offload/fake/fake_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <array>
#include <atomic>
#include <set>
#include <thread>

#include "csrc/base/check.h"
#include "tests/csrc/ranks.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

using ::testing::ElementsAre;
using testing::message_of;
using ::testing::Pair;
using testing::run_on;
using testing::task;

// What calls 1 to `calls` of `stage` throw, in order.
std::vector<std::string> errors_of(const Backend& backend, const char* stage, int calls, int& ran,
                                   LaneKind kind = LaneKind::kCpu) {
  std::vector<std::string> errors;
  for (int call = 0; call < calls; ++call) {
    const Outcome outcome = run_on(backend.lanes[kind], task(stage, [&] { ++ran; }));
    errors.push_back(message_of(outcome.error));
  }
  return errors;
}

FakeDeviceOptions with(std::vector<Fault> faults) {
  FakeDeviceOptions options;
  options.longest_delay_us = 0;
  options.faults = std::move(faults);
  return options;
}

TEST(FakeBackend, IsStagedAndHasAThreadForEachKindOfLane) {
  const Backend backend = make_fake_backend({});
  EXPECT_TRUE(backend.staged());
  EXPECT_NE(dynamic_cast<HostDevice*>(backend.shard_memory.get()), nullptr);
  EXPECT_NE(dynamic_cast<FakeDevice*>(backend.compute.get()), nullptr);
  EXPECT_EQ(backend.lanes.states(),
            "cpu: idle\nto_device: idle\ncompute: idle\nto_host: idle\ncollective: idle\n");
  std::set<std::thread::id> threads;
  for (int kind = 0; kind < kLaneKinds; ++kind) {
    run_on(backend.lanes[static_cast<LaneKind>(kind)],
           task("look", [&] { threads.insert(std::this_thread::get_id()); }));
  }
  EXPECT_EQ(threads.size(), size_t{kLaneKinds});
}

TEST(FakeBackend, AFaultBeforeTheBodyStrikesTheNamedCallOfTheNamedStageOnly) {
  const Backend backend = make_fake_backend(with({{"momentum", 2, Fault::Kind::kThrowBefore}}));
  int ran = 0;
  EXPECT_THAT(errors_of(backend, "apply", 3, ran), ElementsAre("", "", ""));
  EXPECT_EQ(ran, 3);
  EXPECT_THAT(errors_of(backend, "momentum", 3, ran),
              ElementsAre("", "injected fault before call 2 of momentum", ""));
  EXPECT_EQ(ran, 5);
}

TEST(FakeBackend, AFaultAfterTheBodyStrikesWhenItHasRun) {
  const Backend backend = make_fake_backend(with({{"apply", 1, Fault::Kind::kThrowAfter}}));
  int ran = 0;
  EXPECT_THAT(errors_of(backend, "apply", 2, ran),
              ElementsAre("injected fault after call 1 of apply", ""));
  EXPECT_EQ(ran, 2);
}

TEST(FakeBackend, ADelayedCallComesLateAndWhole) {
  const Backend backend = make_fake_backend(with({{"gather", 1, Fault::Kind::kDelay, 2}}));
  const Outcome outcome = run_on(backend.lanes[LaneKind::kCollective], task("gather", [] {}));
  EXPECT_FALSE(outcome.error);
  // Sleeping guarantees the lower bound.
  EXPECT_GE(outcome.end_ns - outcome.begin_ns, 2'000'000);
}

TEST(FakeBackend, CallsAreCountedByStageOverAllLanes) {
  FakeDeviceOptions options = with({{"copy", 3, Fault::Kind::kThrowBefore}});
  options.calls = std::make_shared<StageCalls>();
  const Backend backend = make_fake_backend(options);
  int ran = 0;
  errors_of(backend, "copy", 2, ran, LaneKind::kToDevice);
  errors_of(backend, "apply", 1, ran);
  EXPECT_THAT(errors_of(backend, "copy", 1, ran, LaneKind::kToHost),
              ElementsAre("injected fault before call 3 of copy"));
  EXPECT_THAT(options.calls->counts(), ElementsAre(Pair("apply", 1), Pair("copy", 3)));
}

TEST(FakeBackend, OneFaultStrikesOnceWhenFiveLanesBeginTheSameStage) {
  std::atomic<int> failed = 0;
  {
    const Backend backend = make_fake_backend(with({{"any", 100, Fault::Kind::kThrowBefore}}));
    for (int i = 0; i < 200; ++i) {
      backend.lanes[static_cast<LaneKind>(i % kLaneKinds)].submit(
          task("any", [] {}), [&](Outcome outcome) { failed += outcome.error ? 1 : 0; });
    }
  }
  EXPECT_EQ(failed, 1);
}

TEST(FakeBackend, AFaultThatCannotHappenIsAValueError) {
  EXPECT_THROW(make_fake_backend(with({{"apply", 0, Fault::Kind::kDelay, 1}})), ValueError);
  EXPECT_THROW(make_fake_backend(with({{"", 1, Fault::Kind::kDelay, 1}})), ValueError);
  EXPECT_THROW(make_fake_backend(with({{"apply", 1, Fault::Kind::kDelay, -1}})), ValueError);
}

TEST(FakeBackend, ALanesTeamHasTheThreadsThatWereAskedFor) {
  for (const int threads : {1, 2}) {
    FakeDeviceOptions options;
    options.threads_per_lane = threads;
    const Backend backend = make_fake_backend(options);
    int got = 0;
    run_on(backend.lanes[LaneKind::kCompute], task("look", [&] { got = omp_get_max_threads(); }));
    EXPECT_EQ(got, threads);
  }
}

// Sends a value through four lanes and the device, and returns what comes back.
uint64_t round_trip(const Backend& backend, const Memory& memory, uint64_t value) {
  Device& device = *backend.compute;
  auto* const words = reinterpret_cast<uint64_t*>(memory.get());
  uint64_t sent = 0, got = 0;
  const auto stage = [&](LaneKind kind, const char* name, std::function<void()> body) {
    const Outcome outcome = run_on(backend.lanes[kind], task(name, std::move(body)));
    if (outcome.error) std::rethrow_exception(outcome.error);
  };
  stage(LaneKind::kCpu, "fill", [&] { sent = value; });
  stage(LaneKind::kToDevice, "copy in", [&] { device.copy_to_device(words, &sent, 8); });
  stage(LaneKind::kCompute, "copy", [&] {
    device.spread_word({memory.get(), std::array<int64_t, 2>{0, 8}});
  });
  stage(LaneKind::kToHost, "copy out", [&] { device.copy_to_host(&got, words + 1, 8); });
  return got;
}

// A lane's operations that are late, each behind the one before.
TEST(FakeBackend, WhatIsHandedOverIsThereForWhoStandsBehindItsMark) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Backend backend = make_fake_backend({.seed = seed, .streams = true});
    Device& device = *backend.compute;
    const Memory memory = device.allocate(16);
    auto* const words = reinterpret_cast<uint64_t*>(memory.get());
    const uint64_t sent = seed + 1;
    uint64_t got = 0;
    std::shared_ptr<Mark> mark;
    const auto on = [&](LaneKind lane, std::function<void()> body, bool hands_over) {
      Task work = task("work", std::move(body));
      work.after = mark;
      work.hands_over = hands_over;
      const Outcome outcome = run_on(backend.lanes[lane], std::move(work));
      EXPECT_EQ(message_of(outcome.error), "");
      EXPECT_EQ(outcome.mark != nullptr, hands_over);
      mark = outcome.mark;
    };
    on(
        LaneKind::kToDevice, [&] { device.copy_to_device(words, &sent, 8); }, true);
    on(
        LaneKind::kCompute,
        [&] {
          device.spread_word({memory.get(), std::array<int64_t, 2>{0, 8}});
        },
        true);
    on(
        LaneKind::kToHost, [&] { device.copy_to_host(&got, words + 1, 8); }, false);
    EXPECT_EQ(got, sent) << "seed " << seed;
  }
}

TEST(FakeBackend, WhatFailsAfterItWasHandedOverIsToldByWhoWaitsForItOnAnyLane) {
  for (const LaneKind next : {LaneKind::kCpu, LaneKind::kCompute}) {
    const Backend backend = make_fake_backend({.streams = true});
    uint64_t here = 0;
    Task bad = task("bad", [&] { backend.compute->set_word(&here, 1); });
    bad.hands_over = true;
    const Outcome handed = run_on(backend.lanes[LaneKind::kToDevice], std::move(bad));
    EXPECT_EQ(message_of(handed.error), "");
    Task behind = task("behind", [] {});
    behind.after = handed.mark;
    const Outcome outcome = run_on(backend.lanes[next], std::move(behind));
    EXPECT_THAT(message_of(outcome.error), ::testing::HasSubstr("set_word: destination"));
  }
}

TEST(FakeBackend, WhatGoesThroughAllLanesArrivesWholeForManySeeds) {
  constexpr int kChains = 8;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Backend backend = make_fake_backend({.seed = seed});
    const auto errors = testing::on_ranks(kChains, [&](int chain) {
      const Memory memory = backend.compute->allocate(16);
      const uint64_t value = seed + 100 * chain, got = round_trip(backend, memory, value);
      require(got == value, "seed ", seed, ", chain ", chain, ": got ", got);
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
    dynamic_cast<FakeDevice&>(*backend.compute).check();
  }
}

}  // namespace
}  // namespace zeromuon::offload
