#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ScopeExit.h>

#include <cstdlib>
#include <optional>
#include <string_view>

#include "csrc/base/check.h"
#include "csrc/cuda/runtime.h"
#include "offload/backend.h"
#include "offload/cuda_device.h"
#include "offload/host_device.h"
#include "offload/team_context.h"
#include "offload/thread_lane.h"

namespace zeromuon::offload {
namespace {

class CudaMark final : public Mark {
 public:
  explicit CudaMark(cuda::StreamRef stream) { event_.record(stream); }
  bool reached() override { return event_.reached(); }
  void wait() override { event_.wait(); }
  void hold(cuda::StreamRef stream) { event_.hold(stream); }

 private:
  cuda::Event event_;
};

// Of the lane where the CPU works, with a team of its own. Ranges show each task to profilers,
// under the name of its stage, here and below.
class CpuLaneContext final : public TeamContext {
 public:
  using TeamContext::TeamContext;
  void begin(const Task& task) override {
    TeamContext::begin(task);
    range_.emplace(task.stage);
  }
  std::shared_ptr<Mark> finish(const Task&) override {
    range_.reset();
    return nullptr;
  }

 private:
  std::optional<cuda::Range> range_;
};

// Gives the lane a stream of its own and waits for it after every task that does not hand over.
class CudaLaneContext final : public LaneContext {
 public:
  CudaLaneContext(c10::Device device, bool high_priority)
      : device_(device), high_priority_(high_priority) {}

  void enter() override {
    const c10::impl::VirtualGuardImpl guard(device_.type());
    guard.setDevice(device_);
    const c10::Stream stream = guard.getStreamFromGlobalPool(device_, high_priority_);
    guard.exchangeStream(stream);
    stream_ = {stream.native_handle()};
    done_.emplace();
  }

  void begin(const Task& task) override {
    range_.emplace(task.stage);
    // Marks of a backend are of one kind: the CPU's lane makes none.
    if (task.after) static_cast<CudaMark&>(*task.after).hold(stream_);
  }

  std::shared_ptr<Mark> finish(const Task& task) override {
    const auto close_range = c10::make_scope_exit([&] { range_.reset(); });
    if (task.hands_over) return std::make_shared<CudaMark>(stream_);
    done_->record(stream_);
    done_->wait();
    return nullptr;
  }

 private:
  const c10::Device device_;
  const bool high_priority_;
  cuda::StreamRef stream_;
  std::optional<cuda::Event> done_;
  std::optional<cuda::Range> range_;
};

std::unique_ptr<Lane> gpu_lane(const char* name, c10::Device device, bool high_priority = false) {
  return std::make_unique<ThreadLane>(name,
                                      std::make_unique<CudaLaneContext>(device, high_priority));
}

bool hands_over_by_events() {
  const char* const said = std::getenv("ZEROMUON_HAND_OVER");
  const std::string_view how = said == nullptr ? "host" : said;
  require(how == "host" || how == "events",
          "ZEROMUON_HAND_OVER: expected \"host\" or \"events\", got \"", how, "\"");
  return how == "events";
}

}  // namespace

Backend make_cuda_backend(const Placement& placement, ops::CpuKernels kernels, int cpu_threads) {
  const c10::Device gpu = placement.compute;
  Backend backend;
  backend.hands_over = hands_over_by_events();
  if (placement.staged()) backend.shard_memory = std::make_unique<HostDevice>(kernels);
  backend.registrar = std::make_shared<CudaRegistrar>(gpu);
  backend.compute = std::make_unique<CudaDevice>(gpu);
  if (placement.staged()) {
    backend.lanes.add(
        std::make_unique<ThreadLane>("cpu", std::make_unique<CpuLaneContext>(cpu_threads)),
        {LaneKind::kCpu});
    backend.lanes.add(gpu_lane(name_of(LaneKind::kToDevice), gpu), {LaneKind::kToDevice});
    backend.lanes.add(gpu_lane("compute", gpu), {LaneKind::kCompute});
    backend.lanes.add(gpu_lane(name_of(LaneKind::kToHost), gpu), {LaneKind::kToHost});
  } else {
    backend.lanes.add(gpu_lane("compute", gpu),
                      {LaneKind::kCpu, LaneKind::kToDevice, LaneKind::kCompute, LaneKind::kToHost});
  }
  backend.lanes.add(gpu_lane(name_of(LaneKind::kCollective), gpu, backend.hands_over),
                    {LaneKind::kCollective});
  return backend;
}

}  // namespace zeromuon::offload
