#include "zero3/played/virtual_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <new>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::offload {
namespace {

int64_t nanoseconds(double seconds) { return std::llround(1e9 * seconds); }

class VirtualLane : public Lane {
 public:
  VirtualLane(LaneKind kind, VirtualClock& clock, const Rates& rates)
      : clock_(clock), kind_(kind), rates_(rates) {}

  void submit(Task task, Done done) override {
    (task.urgency == Urgency::kUrgent ? urgent_ : filler_)
        .push_back({std::move(task), std::move(done)});
    if (!running_) start();
  }
  std::optional<int64_t> running() const override { return running_; }
  std::string state() const override {
    return concat(name_of(kind_), ": ", running_ ? "busy" : "idle", ", ",
                  urgent_.size() + filler_.size(), " waiting");
  }

 protected:
  // Calls finish() when a task that costs `duration_ns` would be done.
  virtual void play(int64_t duration_ns, std::function<void(int64_t, int64_t)> finish) {
    const int64_t begin = clock_.now_ns(), end = begin + duration_ns;
    clock_.at(end, [=] { finish(begin, end); });
  }

  VirtualClock& clock_;

 private:
  struct Entry {
    Task task;
    Done done;
  };

  void start() {
    std::deque<Entry>& queue = urgent_.empty() ? filler_ : urgent_;
    if (queue.empty()) return;
    Entry entry = std::move(queue.front());
    queue.pop_front();
    running_ = entry.task.number;
    const int64_t duration_ns = nanoseconds(seconds_of(entry.task.cost, kind_, rates_));
    play(duration_ns, [this, done = std::move(entry.done)](int64_t begin, int64_t end) {
      done({nullptr, begin, end});
      running_.reset();
      start();
    });
  }

  const LaneKind kind_;
  const Rates rates_;
  std::deque<Entry> urgent_, filler_;
  std::optional<int64_t> running_;
};

class VirtualCollectiveLane final : public VirtualLane {
 public:
  VirtualCollectiveLane(VirtualClock& clock, VirtualFabric& fabric, int process, const Rates& rates)
      : VirtualLane(LaneKind::kCollective, clock, rates), fabric_(fabric), process_(process) {}

 private:
  void play(int64_t duration_ns, std::function<void(int64_t, int64_t)> finish) override {
    fabric_.join(process_, duration_ns, std::move(finish));
  }

  VirtualFabric& fabric_;
  int process_;
};

// Addresses, and nothing behind them: bodies are not run.
class VirtualDevice final : public Device {
 public:
  Memory allocate(int64_t bytes) override {
    const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    void* at = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return {static_cast<std::byte*>(at), [size](std::byte* p) { munmap(p, size); }};
  }
  void copy_to_device(void*, const void*, int64_t) override { refuse(); }
  void copy_to_host(void*, const void*, int64_t) override { refuse(); }
  void update_momentum(const ops::MomentumElement&, const ops::MomentumArrays&, int64_t,
                       Alarm) override {
    refuse();
  }
  void apply_update(const ops::ApplyElement&, const ops::ApplyArrays&, int64_t, Alarm) override {
    refuse();
  }
  void adamw(const ops::AdamWElement&, const ops::AdamWArrays&, int64_t, Alarm) override {
    refuse();
  }
  void encode_wire(const float*, const ops::Typed&, int64_t, Alarm) override { refuse(); }
  void decode_wire(const ops::ConstTyped&, float*, int64_t) override { refuse(); }
  void orthogonalize(const ops::NewtonSchulz&, std::span<float* const>, float*, int) override {
    refuse();
  }
  void set_word(uint64_t*, uint64_t) override { refuse(); }
  void read_word(uint64_t*, const uint64_t*) override { refuse(); }
  void spread_word(const Words&) override { refuse(); }
  void read_words(uint64_t*, const Words&) override { refuse(); }
  ops::Products& products() override { return *products_; }

 private:
  [[noreturn]] static void refuse() { throw_internal_error("a virtual device was given work"); }

  std::unique_ptr<ops::Products> products_ = ops::make_host_products();
};

}  // namespace

void VirtualClock::at(int64_t time_ns, std::function<void()> event) {
  queue_.push({time_ns, events_++, std::move(event)});
}

bool VirtualClock::advance() {
  if (queue_.empty()) return false;
  const Event next = queue_.top();
  queue_.pop();
  now_ns_ = next.time_ns;
  next.run();
  return true;
}

void VirtualFabric::join(int process, int64_t duration_ns,
                         std::function<void(int64_t, int64_t)> ended) {
  invariant(!waiting_[process].here, "process ", process, " joins a collective twice");
  waiting_[process] = {true, duration_ns, std::move(ended)};
  int64_t longest = 0;
  for (const Waiting& w : waiting_) {
    if (!w.here) return;
    longest = std::max(longest, w.duration_ns);
  }
  const int64_t begin = clock_.now_ns(), end = begin + longest;
  for (Waiting& w : waiting_) {
    clock_.at(end, [ended = std::move(w.ended), begin, end] { ended(begin, end); });
    w = {};
  }
}

Backend make_virtual_backend(VirtualClock& clock, VirtualFabric& fabric, int process,
                             const Rates& rates) {
  Backend backend;
  backend.shard_memory = std::make_unique<VirtualDevice>();
  backend.compute = std::make_unique<VirtualDevice>();
  backend.first_touch = [](std::byte*, int64_t) {};
  for (const auto kind :
       {LaneKind::kCpu, LaneKind::kToDevice, LaneKind::kCompute, LaneKind::kToHost}) {
    backend.lanes.add(std::make_unique<VirtualLane>(kind, clock, rates), {kind});
  }
  backend.lanes.add(std::make_unique<VirtualCollectiveLane>(clock, fabric, process, rates),
                    {LaneKind::kCollective});
  return backend;
}

}  // namespace zeromuon::offload
