#include "zero3/step/lanes_in_use.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <future>
#include <latch>

#include "offload/thread_lane.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::zero3 {
namespace {

using offload::LaneKind;
using offload::Urgency;

// A filler that was given first and waits is not what holds the lane up.
TEST(LanesInUse, WhatIsStuckIsWhatRunsOnTheLane) {
  std::latch held{1}, running{1}, opened{1};
  offload::Lanes lanes;
  lanes.add(std::make_unique<offload::ThreadLane>("to_device"), {LaneKind::kToDevice});
  boost::asio::io_context io;
  StepRecord record;
  LanesInUse in_use(io, lanes, record);
  const StageRow filler{"filler", "", LaneKind::kToDevice, Urgency::kFiller};
  const StageRow urgent{"urgent", "", LaneKind::kToDevice, Urgency::kUrgent};
  const auto give = [&](const StageRow& row, int bucket, std::function<void()> body) {
    boost::asio::co_spawn(io, in_use.run(row, {0, bucket}, {}, std::move(body)),
                          boost::asio::detached);
  };

  lanes[LaneKind::kToDevice].submit(testing::task("before", [&] { held.wait(); }), nullptr);
  give(filler, 1, [] {});
  give(urgent, 2, [&] {
    running.count_down();
    opened.wait();
  });
  io.run_for(std::chrono::milliseconds(1));
  held.count_down();
  running.wait();
  const auto stuck = in_use.stuck(std::chrono::milliseconds(0));
  opened.count_down();
  ASSERT_TRUE(stuck);
  EXPECT_STREQ(stuck->stage, "urgent");
  EXPECT_EQ(stuck->where.bucket, 2);
  testing::run_on(lanes[LaneKind::kToDevice], testing::task(
                                                  "last", [] {}, Urgency::kFiller));
  io.restart();
  io.run();
  in_use.check_idle();
}

}  // namespace
}  // namespace zeromuon::zero3
