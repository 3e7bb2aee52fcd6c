// What one call gives to the lanes, and how they get on with it.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "offload/lane.h"
#include "zero3/step/step_call.h"
#include "zero3/step/step_fault.h"

namespace zeromuon::zero3 {

// Thread: that of the io_context; lanes post their outcomes to it. One member is atomic.
class LanesInUse {
 public:
  LanesInUse(boost::asio::io_context& io, const offload::Lanes& lanes, StepRecord& record);

  // Runs `body` as a task of the row's lane and notes how long it took. Its error is in the
  // outcome. after, hands_over: as of Task.
  boost::asio::awaitable<offload::Outcome> run(const StageRow& row, Where where, offload::Cost cost,
                                               std::function<void()> body,
                                               std::shared_ptr<offload::Mark> after = nullptr,
                                               bool hands_over = false);

  // A lane that has had work for `limit` and finished none: what runs there. A rank that
  // waits in a collective has half as much patience again: what it waits for reports itself first.
  // What was handed over is at work until its mark is reached.
  struct Stuck {
    const char* stage;
    Where where;
    double seconds;
    bool waits;  // for the other ranks
  };
  std::optional<Stuck> stuck(std::chrono::milliseconds limit);

  // Raises InternalError when a task is under way.
  void check_idle();

 private:
  using Clock = std::chrono::steady_clock;

  // What a lane was given and has not done, as far as this thread knows.
  struct Progress {
    struct Entry {
      int64_t number;
      const StageRow* row;  // of the plan
      Where where;
      std::shared_ptr<offload::Mark> mark = {};  // where it is done, once it was handed over
    };
    std::vector<Entry> entries;  // what was handed over first, in that order
    Clock::time_point last;      // when one was done, or the first came

    void add(const Entry& entry);
    void remove(int64_t number);
    void hand_over(int64_t number, const std::shared_ptr<offload::Mark>& mark);
    void remove_reached();
    // The first that was handed over, else the entry of that number, else the first. There is one.
    const Entry& runs(std::optional<int64_t> number) const;
  };

  boost::asio::awaitable<offload::Outcome> submit(offload::Lane& lane, offload::Task task);
  void note(const StageRow& row, Where where, const offload::Outcome& outcome);

  boost::asio::io_context& io_;
  const offload::Lanes& lanes_;
  StepRecord& record_;
  int64_t tasks_ = 0;
  std::map<const offload::Lane*, Progress> progress_;
  // Whether the last collective has been begun; set by its lane.
  std::atomic<bool> in_collective_ = false;
};

}  // namespace zeromuon::zero3
