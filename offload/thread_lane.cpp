#include "offload/thread_lane.h"

#include <chrono>
#include <iomanip>

#include "csrc/base/check.h"

namespace zeromuon::offload {
namespace {

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// What body() throws, or null.
template <typename Body>
std::exception_ptr error_of(const Body& body) {
  try {
    body();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace

ThreadLane::ThreadLane(std::string name, std::unique_ptr<LaneContext> context)
    : name_(std::move(name)),
      context_(context ? std::move(context) : std::make_unique<LaneContext>()),
      thread_([this] { run(); }) {}

ThreadLane::~ThreadLane() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  submitted_.notify_one();
  thread_.join();
}

void ThreadLane::submit(Task task, Done done) {
  {
    const std::lock_guard lock(mutex_);
    std::deque<Entry>& queue = task.urgency == Urgency::kUrgent ? urgent_ : filler_;
    queue.push_back({std::move(task), std::move(done)});
  }
  submitted_.notify_one();
}

std::optional<int64_t> ThreadLane::running() const {
  const std::lock_guard lock(mutex_);
  return running_.stage == nullptr ? std::nullopt : std::optional(running_.number);
}

std::string ThreadLane::state() const {
  const std::lock_guard lock(mutex_);
  std::ostringstream out;
  out << name_ << ": ";
  if (running_.stage == nullptr) {
    out << "idle";
  } else {
    out << running_.stage;
    if (running_.bucket >= 0) out << " of bucket " << running_.bucket;
    out << " for " << std::fixed << std::setprecision(2) << 1e-9 * (now_ns() - running_.since_ns)
        << " s";
  }
  const size_t waiting = urgent_.size() + filler_.size();
  if (waiting > 0) out << ", " << waiting << " waiting";
  return out.str();
}

void ThreadLane::run() {
  enter_error_ = error_of([&] { context_->enter(); });
  for (Entry entry; take(entry);) serve(std::move(entry));
}

// The next entry; false: there will be none.
bool ThreadLane::take(Entry& entry) {
  std::unique_lock lock(mutex_);
  running_ = {};
  submitted_.wait(lock, [&] { return stopping_ || !urgent_.empty() || !filler_.empty(); });
  std::deque<Entry>& queue = urgent_.empty() ? filler_ : urgent_;
  if (queue.empty()) return false;
  entry = std::move(queue.front());
  queue.pop_front();
  running_ = {entry.task.stage, entry.task.bucket, entry.task.number, now_ns()};
  return true;
}

void ThreadLane::serve(Entry entry) {
  Outcome outcome;
  outcome.begin_ns = now_ns();
  perform(entry.task, outcome);
  outcome.end_ns = now_ns();
  entry.task.body = nullptr;
  if (entry.done) entry.done(std::move(outcome));
}

void ThreadLane::perform(const Task& task, Outcome& outcome) {
  outcome.error = enter_error_;
  if (outcome.error) return;
  outcome.error = error_of([&] { context_->begin(task); });
  if (outcome.error) return;
  outcome.error = error_of([&] {
    if (task.body) task.body();
  });
  const std::exception_ptr unfinished = error_of([&] { outcome.mark = context_->finish(task); });
  if (!outcome.error) outcome.error = unfinished;
}

}  // namespace zeromuon::offload
