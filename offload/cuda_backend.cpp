#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ScopeExit.h>

#include <optional>

#include "csrc/cuda/runtime.h"
#include "offload/backend.h"
#include "offload/cuda_device.h"
#include "offload/host_device.h"
#include "offload/team_context.h"
#include "offload/thread_lane.h"

namespace zeromuon::offload {
namespace {

// Shows each task to profilers, under the name of its stage.
class RangeContext : public LaneContext {
 public:
  void begin(const Task& task) override { range_.emplace(task.stage); }
  void finish(const Task&) override { range_.reset(); }

 private:
  std::optional<cuda::Range> range_;
};

// Of the lane where the CPU works, with a team of its own.
class CpuLaneContext final : public RangeContext {
 public:
  explicit CpuLaneContext(int threads) : team_(threads) {}
  void enter() override { team_.enter(); }

 private:
  TeamContext team_;
};

// Gives the lane a stream of its own and waits for it after every task.
class CudaLaneContext final : public RangeContext {
 public:
  explicit CudaLaneContext(c10::Device device) : device_(device) {}

  void enter() override {
    const c10::impl::VirtualGuardImpl guard(device_.type());
    guard.setDevice(device_);
    const c10::Stream stream = guard.getStreamFromGlobalPool(device_);
    guard.exchangeStream(stream);
    stream_ = {stream.native_handle()};
    done_.emplace();
  }

  void finish(const Task& task) override {
    const auto close_range = c10::make_scope_exit([&] { RangeContext::finish(task); });
    done_->record(stream_);
    done_->wait();
  }

 private:
  const c10::Device device_;
  cuda::StreamRef stream_;
  std::optional<cuda::Event> done_;
};

std::unique_ptr<Lane> gpu_lane(const char* name, c10::Device device) {
  return std::make_unique<ThreadLane>(name, std::make_unique<CudaLaneContext>(device));
}

}  // namespace

Backend make_cuda_backend(const Placement& placement, ops::CpuKernels kernels, int cpu_threads) {
  const c10::Device gpu = placement.compute;
  Backend backend;
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
  backend.lanes.add(gpu_lane(name_of(LaneKind::kCollective), gpu), {LaneKind::kCollective});
  return backend;
}

}  // namespace zeromuon::offload
