#include "offload/backend.h"

#include "csrc/base/check.h"
#include "offload/host_device.h"
#include "offload/team_context.h"
#include "offload/thread_lane.h"

namespace zeromuon::offload {
namespace {

// One thread for everything but the collectives: one OpenMP team.
Backend host_backend(ops::CpuKernels kernels, int cpu_threads) {
  Backend backend;
  backend.compute = std::make_unique<HostDevice>(kernels);
  backend.lanes.add(std::make_unique<ThreadLane>("cpu", std::make_unique<TeamContext>(cpu_threads)),
                    {LaneKind::kCpu, LaneKind::kToDevice, LaneKind::kCompute, LaneKind::kToHost});
  backend.lanes.add(std::make_unique<ThreadLane>(name_of(LaneKind::kCollective)),
                    {LaneKind::kCollective});
  return backend;
}

}  // namespace

Backend make_backend(const Placement& placement, ops::CpuKernels kernels, int cpu_threads) {
  if (placement.shard.is_cpu() && placement.compute.is_cpu()) {
    return host_backend(kernels, cpu_threads);
  }
#ifdef ZEROMUON_WITH_CUDA
  if (placement.compute.is_cuda()) return make_cuda_backend(placement, kernels, cpu_threads);
#endif
  throw_value_error(
      concat("placement: this build of zeromuon cannot work on ", placement.compute.str(),
             ", whose code was not compiled: install CUDA's toolkit and build again"));
}

}  // namespace zeromuon::offload
