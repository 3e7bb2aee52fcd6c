#include "offload/fake/fake_backend.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <utility>

#include "csrc/base/check.h"
#include "offload/fake/late_device.h"
#include "offload/thread_lane.h"

namespace zeromuon::offload {
namespace {

void sleep_us(int64_t us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

// Mostly none or a hint to the scheduler; else a sleep, more often short than long.
class Delays {
 public:
  Delays(uint64_t seed, uint64_t lane, int64_t longest_us)
      : generator_(seed * 2 * kLaneKinds + lane), longest_us_(longest_us) {}

  void draw() {
    if (longest_us_ == 0) return;
    const double choice = uniform_(generator_);
    if (choice < 0.5) return;
    if (choice < 0.8) return std::this_thread::yield();
    const double length = uniform_(generator_);
    sleep_us(static_cast<int64_t>(length * length * length * static_cast<double>(longest_us_)));
  }

 private:
  std::mt19937_64 generator_;
  std::uniform_real_distribution<double> uniform_;
  int64_t longest_us_;
};

// What the lanes of one backend share; constant but for the counts.
struct Plot {
  std::vector<Fault> faults;
  std::shared_ptr<StageCalls> calls;
};

// Thread: used by its lane's thread only.
class AdversarialContext final : public LaneContext {
 public:
  // stream: of the lane; null: it has none.
  AdversarialContext(std::shared_ptr<const Plot> plot, Delays delays, int threads,
                     std::unique_ptr<FakeStream> stream)
      : plot_(std::move(plot)), delays_(delays), threads_(threads), stream_(std::move(stream)) {}

  void enter() override {
    omp_set_num_threads(threads_);  // of this thread's teams
    if (stream_) stream_->make_current();
  }
  void begin(const Task& task) override {
    call_ = plot_->calls->next(task.stage);
    delays_.draw();
    if (!stream_) {
      LaneContext::begin(task);
    } else if (task.after) {
      stream_->hold(task.after);
    }
    for (const Fault& fault : plot_->faults) {
      if (hits(fault, task) && fault.kind == Fault::Kind::kDelay) sleep_ms(fault.delay_ms);
    }
    strike(Fault::Kind::kThrowBefore, "before", task);
  }
  std::shared_ptr<Mark> finish(const Task& task) override {
    delays_.draw();
    std::shared_ptr<Mark> mark = stream_ ? stream_->mark() : nullptr;
    if (mark && (!task.hands_over || strikes(Fault::Kind::kThrowAfter, task))) {
      std::exchange(mark, nullptr)->wait();
    }
    strike(Fault::Kind::kThrowAfter, "after", task);
    return mark;
  }

 private:
  // Of what the task puts on its stream, if there is one.
  void sleep_ms(int64_t ms) const {
    const auto sleep = [ms] { sleep_us(1000 * ms); };
    stream_ ? stream_->put(sleep) : sleep();
  }
  bool hits(const Fault& fault, const Task& task) const {
    return fault.call == call_ && fault.stage == task.stage;
  }
  bool strikes(Fault::Kind kind, const Task& task) const {
    return std::ranges::any_of(
        plot_->faults, [&](const Fault& fault) { return fault.kind == kind && hits(fault, task); });
  }
  void strike(Fault::Kind kind, const char* when, const Task& task) const {
    if (!strikes(kind, task)) return;
    throw InjectedFault(concat("injected fault ", when, " call ", call_, " of ", task.stage));
  }

  std::shared_ptr<const Plot> plot_;
  Delays delays_;
  int threads_;
  std::unique_ptr<FakeStream> stream_;
  int64_t call_ = 0;  // of the running task's stage
};

std::unique_ptr<FakeStream> stream_of(const FakeDeviceOptions& options, int lane) {
  const auto number = static_cast<uint64_t>(kLaneKinds + lane);
  return std::make_unique<FakeStream>(
      [threads = options.threads_per_lane] { omp_set_num_threads(threads); },
      [delays = Delays(options.seed, number, options.longest_delay_us)]() mutable {
        delays.draw();
      });
}

void check(const FakeDeviceOptions& options) {
  require(options.longest_delay_us >= 0, "fake device: longest_delay_us: expected at least 0, got ",
          options.longest_delay_us);
  require(options.threads_per_lane >= 1, "fake device: threads_per_lane: expected at least 1, got ",
          options.threads_per_lane);
  for (const Fault& fault : options.faults) {
    require(!fault.stage.empty() && fault.call >= 1 && fault.delay_ms >= 0,
            "fake device: fault in call ", fault.call, " of \"", fault.stage, "\", ",
            fault.delay_ms, " ms: expected a stage, a call of at least 1 and no negative delay");
  }
}

}  // namespace

int64_t StageCalls::next(const std::string& stage) {
  const std::lock_guard lock(mutex_);
  return ++counts_[stage];
}

std::map<std::string, int64_t> StageCalls::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

Backend make_fake_backend(const FakeDeviceOptions& options) {
  check(options);
  const auto plot = std::make_shared<const Plot>(
      Plot{options.faults, options.calls ? options.calls : std::make_shared<StageCalls>()});
  Backend backend;
  const auto registrar = std::make_shared<FakeRegistrar>(options.registration_refused);
  backend.shard_memory = std::make_unique<HostDevice>(options.kernels);
  backend.compute = std::make_unique<FakeDevice>(options.kernels, registrar);
  if (options.streams) {
    backend.compute = std::make_unique<LateDevice>(std::move(backend.compute));
  }
  backend.hands_over = options.streams;
  backend.registrar = registrar;
  for (int lane = 0; lane < kLaneKinds; ++lane) {
    const auto kind = static_cast<LaneKind>(lane);
    const Delays delays(options.seed, static_cast<uint64_t>(lane), options.longest_delay_us);
    auto context = std::make_unique<AdversarialContext>(
        plot, delays, options.threads_per_lane,
        options.streams && kind != LaneKind::kCpu ? stream_of(options, lane) : nullptr);
    backend.lanes.add(std::make_unique<ThreadLane>(name_of(kind), std::move(context)), {kind});
  }
  return backend;
}

}  // namespace zeromuon::offload
