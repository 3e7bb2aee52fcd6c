// A lane that is one thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "offload/lane.h"

namespace zeromuon::offload {

// What a lane does around its tasks: makes a stream current and waits for it, marks a range for a
// profiler, or takes its time. What begin() throws stands in for the body; what finish() throws is
// the error of a task whose body threw nothing.
// Thread: used by its lane's thread only.
class LaneContext {
 public:
  virtual ~LaneContext() = default;
  virtual void enter() {}  // once, before the first task; its error is every task's
  // Before each body. What it queues comes after task.after: here the thread waits for that.
  virtual void begin(const Task& task) {
    if (task.after) task.after->wait();
  }
  // After each body, also one that threw. Null: what it queued is done.
  virtual std::shared_ptr<Mark> finish(const Task&) { return nullptr; }
};

// Runs a filler only when nothing urgent waits. A body is destroyed before its `done` is called,
// and `done` before the next task starts. Times are of the steady clock, and span begin() to
// finish().
// Thread: submit(), running() and state() from any thread, also from bodies and `done`, which run
// in the lane's own and must not destroy it. `done` must not throw. The destructor runs what waits
// and what that submits, then joins.
class ThreadLane final : public Lane {
 public:
  explicit ThreadLane(std::string name, std::unique_ptr<LaneContext> context = nullptr);
  ~ThreadLane() override;

  void submit(Task task, Done done) override;
  std::optional<int64_t> running() const override;
  std::string state() const override;

 private:
  struct Entry {
    Task task;
    Done done;
  };
  struct Running {
    const char* stage = nullptr;  // null: idle
    int bucket = -1;
    int64_t number = 0;
    int64_t since_ns = 0;
  };

  void run();
  bool take(Entry& entry);
  void serve(Entry entry);
  void perform(const Task& task, Outcome& outcome);

  const std::string name_;
  const std::unique_ptr<LaneContext> context_;
  std::exception_ptr enter_error_;  // the lane's thread only

  mutable std::mutex mutex_;  // all below but thread_
  std::condition_variable submitted_;
  std::deque<Entry> urgent_, filler_;
  Running running_;
  bool stopping_ = false;

  std::thread thread_;  // the last member: it uses the others
};

}  // namespace zeromuon::offload
