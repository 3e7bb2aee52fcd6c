#include "offload/fake/fake_backend.h"

#include <omp.h>

#include <chrono>
#include <random>
#include <thread>

#include "csrc/base/check.h"
#include "offload/thread_lane.h"

namespace zeromuon::offload {
namespace {

void sleep_us(int64_t us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

// Mostly none or a hint to the scheduler; else a sleep, more often short than long.
class Delays {
 public:
  Delays(uint64_t seed, uint64_t lane, int64_t longest_us)
      : generator_(seed * kLaneKinds + lane), longest_us_(longest_us) {}

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
  AdversarialContext(std::shared_ptr<const Plot> plot, Delays delays, int threads)
      : plot_(std::move(plot)), delays_(delays), threads_(threads) {}

  void enter() override { omp_set_num_threads(threads_); }  // of this thread's teams
  void begin(const Task& task) override {
    call_ = plot_->calls->next(task.stage);
    delays_.draw();
    for (const Fault& fault : plot_->faults) {
      if (hits(fault, task) && fault.kind == Fault::Kind::kDelay) sleep_us(1000 * fault.delay_ms);
    }
    strike(Fault::Kind::kThrowBefore, "before", task);
  }
  void finish(const Task& task) override {
    delays_.draw();
    strike(Fault::Kind::kThrowAfter, "after", task);
  }

 private:
  bool hits(const Fault& fault, const Task& task) const {
    return fault.call == call_ && fault.stage == task.stage;
  }
  void strike(Fault::Kind kind, const char* when, const Task& task) const {
    for (const Fault& fault : plot_->faults) {
      if (fault.kind != kind || !hits(fault, task)) continue;
      throw InjectedFault(concat("injected fault ", when, " call ", call_, " of ", fault.stage));
    }
  }

  std::shared_ptr<const Plot> plot_;
  Delays delays_;
  int threads_;
  int64_t call_ = 0;  // of the running task's stage
};

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
  backend.registrar = registrar;
  for (int lane = 0; lane < kLaneKinds; ++lane) {
    const auto kind = static_cast<LaneKind>(lane);
    const Delays delays(options.seed, static_cast<uint64_t>(lane), options.longest_delay_us);
    auto context = std::make_unique<AdversarialContext>(plot, delays, options.threads_per_lane);
    backend.lanes.add(std::make_unique<ThreadLane>(name_of(kind), std::move(context)), {kind});
  }
  return backend;
}

}  // namespace zeromuon::offload
