#include "offload/thread_lane.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <latch>
#include <stdexcept>
#include <thread>

#include "csrc/base/check.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

using ::testing::ElementsAre;
using ::testing::MatchesRegex;
using testing::message_of;
using testing::run_on;
using testing::task;

// Holds a lane until it is opened.
class Gate {
 public:
  explicit Gate(Lane& lane, int bucket = -1) {
    const auto body = [doors = doors_] {
      doors->began.count_down();
      doors->opened.wait();
    };
    lane.submit(task("gate", body, Urgency::kUrgent, bucket), nullptr);
    doors_->began.wait();
  }
  ~Gate() { doors_->opened.count_down(); }

 private:
  struct Doors {
    std::latch began{1}, opened{1};
  };
  std::shared_ptr<Doors> doors_ = std::make_shared<Doors>();
};

// What a lane did, noted by its own thread; read after the lane is gone or idle.
using Log = std::vector<std::string>;

class LoggingContext final : public LaneContext {
 public:
  LoggingContext(Log& log, std::string failing) : log_(log), failing_(std::move(failing)) {}
  void enter() override { note("enter"); }
  void begin(const Task& task) override { note(concat("begin ", task.stage)); }
  std::shared_ptr<Mark> finish(const Task& task) override {
    note(concat("finish ", task.stage));
    return nullptr;
  }

 private:
  void note(const std::string& what) {
    log_.push_back(what);
    if (what == failing_) throw std::runtime_error("at " + what);
  }
  Log& log_;
  std::string failing_;
};

struct Served {
  Log log;
  std::vector<std::string> errors;
};

// Serves tasks "a" and "b"; "a" throws when told so. The context throws at `failing`.
Served serve_two(const std::string& failing, bool a_throws = false) {
  Served served;
  ThreadLane lane("cpu", std::make_unique<LoggingContext>(served.log, failing));
  for (const char* stage : {"a", "b"}) {
    const Outcome outcome = run_on(lane, task(stage, [&, stage] {
                                     served.log.push_back(stage);
                                     if (a_throws && stage == std::string("a")) {
                                       throw std::runtime_error("body of a");
                                     }
                                   }));
    served.errors.push_back(message_of(outcome.error));
  }
  return served;
}

TEST(ThreadLane, TasksOfOneUrgencyKeepTheOrderOfTheirSubmitterUnderLoad) {
  constexpr int kSubmitters = 4, kEach = 300;
  std::array<std::array<std::vector<int>, 2>, kSubmitters> seen;  // by submitter and urgency
  {
    ThreadLane lane("cpu");
    std::vector<std::thread> submitters;
    for (int s = 0; s < kSubmitters; ++s) {
      submitters.emplace_back([&, s] {
        for (int i = 0; i < kEach; ++i) {
          const int urgency = (i * 7 + s) % 2;
          lane.submit(task(
                          "count", [&, s, i, urgency] { seen[s][urgency].push_back(i); },
                          static_cast<Urgency>(urgency)),
                      nullptr);
          if (i % 50 == 0) (void)lane.state();
        }
      });
    }
    for (std::thread& thread : submitters) thread.join();
  }
  for (const auto& of_submitter : seen) {
    EXPECT_EQ(of_submitter[0].size() + of_submitter[1].size(), size_t{kEach});
    EXPECT_TRUE(std::ranges::is_sorted(of_submitter[0]));
    EXPECT_TRUE(std::ranges::is_sorted(of_submitter[1]));
  }
}

TEST(ThreadLane, UrgentTasksPassFillersThatWait) {
  Log log;
  {
    ThreadLane lane("cpu");
    Gate gate(lane);
    const auto submit = [&](const char* name, Urgency urgency) {
      lane.submit(task(
                      name, [&log, name] { log.push_back(name); }, urgency),
                  nullptr);
    };
    submit("filler 1", Urgency::kFiller);
    submit("urgent 1", Urgency::kUrgent);
    submit("filler 2", Urgency::kFiller);
    submit("urgent 2", Urgency::kUrgent);
  }
  EXPECT_THAT(log, ElementsAre("urgent 1", "urgent 2", "filler 1", "filler 2"));
}

TEST(ThreadLane, AnUrgentTaskFromAFillerRunsBeforeTheNextFiller) {
  Log log;
  {
    ThreadLane lane("cpu");
    Gate gate(lane);
    lane.submit(
        task(
            "first", [&] { lane.submit(task("", [&] { log.push_back("urgent"); }), nullptr); },
            Urgency::kFiller),
        nullptr);
    lane.submit(task(
                    "second", [&] { log.push_back("filler"); }, Urgency::kFiller),
                nullptr);
  }
  EXPECT_THAT(log, ElementsAre("urgent", "filler"));
}

TEST(ThreadLane, TheDestructorRunsWhatWaitsAndWhatThatSubmits) {
  int ran = 0;
  {
    ThreadLane lane("cpu");
    for (int i = 0; i < 10; ++i) {
      const auto urgency = i % 2 == 0 ? Urgency::kUrgent : Urgency::kFiller;
      lane.submit(
          task(
              "outer", [&] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }, urgency),
          [&](Outcome) { lane.submit(task("inner", [&] { ++ran; }), [&](Outcome) { ++ran; }); });
    }
  }
  EXPECT_EQ(ran, 20);
}

TEST(ThreadLane, ABodyGoesBeforeItsDoneAndADoneBeforeTheNextTask) {
  auto in_body = std::make_shared<int>(0), in_done = std::make_shared<int>(0);
  const std::weak_ptr<int> body = in_body, done = in_done;
  ThreadLane lane("cpu");
  bool body_gone = false, done_gone = false;
  {
    Gate gate(lane);
    lane.submit(task("holder", [kept = std::move(in_body)] {}),
                [&, kept = std::move(in_done)](Outcome) { body_gone = body.expired(); });
    lane.submit(task("next", [&] { done_gone = done.expired(); }), nullptr);
  }
  run_on(lane, task("last", [] {}));
  EXPECT_TRUE(body_gone);
  EXPECT_TRUE(done_gone);
}

TEST(ThreadLane, TheContextSurroundsEveryBodyInTheLanesThread) {
  const Served served = serve_two("");
  EXPECT_THAT(served.log,
              ElementsAre("enter", "begin a", "a", "finish a", "begin b", "b", "finish b"));
  EXPECT_THAT(served.errors, ElementsAre("", ""));
}

TEST(ThreadLane, WhatABodyThrowsIsItsOutcomeAndTheContextStillFinishes) {
  const Served served = serve_two("finish a", true);
  EXPECT_THAT(served.errors, ElementsAre("body of a", ""));
  EXPECT_THAT(served.log,
              ElementsAre("enter", "begin a", "a", "finish a", "begin b", "b", "finish b"));
}

TEST(ThreadLane, WhatFinishThrowsIsTheOutcome) {
  EXPECT_THAT(serve_two("finish a").errors, ElementsAre("at finish a", ""));
}

TEST(ThreadLane, WhatBeginThrowsStandsInForTheBody) {
  const Served served = serve_two("begin a");
  EXPECT_THAT(served.errors, ElementsAre("at begin a", ""));
  EXPECT_THAT(served.log, ElementsAre("enter", "begin a", "begin b", "b", "finish b"));
}

TEST(ThreadLane, ALaneThatCannotBeEnteredFailsEveryTask) {
  const Served served = serve_two("enter");
  EXPECT_THAT(served.errors, ElementsAre("at enter", "at enter"));
  EXPECT_THAT(served.log, ElementsAre("enter"));
}

TEST(ThreadLane, TimesAreOfTheSteadyClockAndSpanTheBody) {
  using std::chrono::steady_clock;
  const auto now = [] {
    return steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  };
  ThreadLane lane("cpu");
  int64_t inside = 0;
  const int64_t before = now();
  const Outcome first = run_on(lane, task("first", [&] { inside = now(); }));
  const Outcome second = run_on(lane, task("second", [] {}));
  EXPECT_LE(before, first.begin_ns);
  EXPECT_LE(first.begin_ns, inside);
  EXPECT_LE(inside, first.end_ns);
  EXPECT_LE(first.end_ns, second.begin_ns);
}

TEST(ThreadLane, ItsStateSaysWhatRunsAndHowMuchWaits) {
  ThreadLane lane("to_device");
  EXPECT_EQ(lane.state(), "to_device: idle");
  EXPECT_FALSE(lane.running());
  {
    Gate gate(lane, 3);
    EXPECT_EQ(lane.running(), 0);
    EXPECT_THAT(lane.state(),
                MatchesRegex("to_device: gate of bucket 3 for [0-9]+\\.[0-9][0-9] s"));
    lane.submit(task("more", [] {}), nullptr);
    lane.submit(task(
                    "more", [] {}, Urgency::kFiller),
                nullptr);
    EXPECT_THAT(lane.state(), MatchesRegex("to_device: gate of bucket 3 for .* s, 2 waiting"));
  }
  Gate without_bucket(lane);
  EXPECT_THAT(lane.state(), MatchesRegex("to_device: gate for [0-9.]+ s(, 1 waiting)?"));
}

TEST(Lanes, OneLaneServesTheKindsItIsAddedFor) {
  Lanes lanes;
  lanes.add(std::make_unique<ThreadLane>("cpu"), {LaneKind::kCpu, LaneKind::kCompute});
  lanes.add(std::make_unique<ThreadLane>("collective"), {LaneKind::kCollective});
  EXPECT_EQ(&lanes[LaneKind::kCpu], &lanes[LaneKind::kCompute]);
  EXPECT_NE(&lanes[LaneKind::kCpu], &lanes[LaneKind::kCollective]);
  EXPECT_EQ(lanes.states(), "cpu: idle\ncollective: idle\n");
}

TEST(Lanes, ASecondLaneForAKindIsAnInternalError) {
  Lanes lanes;
  lanes.add(std::make_unique<ThreadLane>("cpu"), {LaneKind::kCpu});
  EXPECT_THROW(lanes.add(std::make_unique<ThreadLane>("x"), {LaneKind::kToHost, LaneKind::kCpu}),
               InternalError);
}

}  // namespace
}  // namespace zeromuon::offload
