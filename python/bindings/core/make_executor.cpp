#include "python/bindings/core/make_executor.h"

#include <chrono>
#include <iostream>

#include "csrc/base/check.h"
#include "csrc/comm/c10d_collectives.h"

namespace zeromuon::bindings {

offload::Placement placement_of(const zero3::StepPlan& plan, const at::Device& shard,
                                const at::Device& compute) {
  require(shard.is_cpu() || shard == compute, "placement: the flat shard is on ", shard.str(),
          " and the process group works on ", compute.str(),
          "; expected the shard on the same device or on the CPU (offload_optimizer)");
  return {shard, compute, plan.options.flow.momentum, plan.options.flow.momentum_dtype};
}

std::unique_ptr<zero3::StepExecutor> make_executor(const zero3::StepPlan& plan, Group group,
                                                   const offload::Placement& placement,
                                                   offload::Backend backend, double stage_timeout_s,
                                                   const std::string& name,
                                                   zero3::StageBodies bodies) {
  zero3::StepLimits limits{
      std::chrono::milliseconds(static_cast<int64_t>(1e3 * stage_timeout_s)),
      [](const std::string& text) { std::cerr << "zeromuon: " << text << std::endl; }};
  auto collectives = std::make_unique<comm::C10dCollectives>(std::move(group), placement.compute,
                                                             name, backend.hands_over);
  return std::make_unique<zero3::StepExecutor>(plan, placement, std::move(backend),
                                               std::move(collectives), std::move(limits),
                                               std::move(bodies));
}

}  // namespace zeromuon::bindings
