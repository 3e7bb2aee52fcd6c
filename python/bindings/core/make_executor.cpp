#include "python/bindings/core/make_executor.h"

#include <chrono>
#include <iostream>

#include "csrc/comm/c10d_collectives.h"

namespace zeromuon::bindings {

offload::Placement placement_of(const zero3::StepPlan& plan, const at::Device& shard,
                                const at::Device& compute) {
  offload::Placement placement = offload::choose_placement(shard, compute);
  placement.momentum = plan.options.flow.momentum;
  placement.momentum_dtype = plan.options.flow.momentum_dtype;
  return placement;
}

std::unique_ptr<zero3::StepExecutor> make_executor(const zero3::StepPlan& plan, Group group,
                                                   const offload::Placement& placement,
                                                   offload::Backend backend, double stage_timeout_s,
                                                   zero3::StageBodies bodies) {
  zero3::StepLimits limits{
      std::chrono::milliseconds(static_cast<int64_t>(1e3 * stage_timeout_s)),
      [](const std::string& text) { std::cerr << "zeromuon: " << text << std::endl; }};
  return std::make_unique<zero3::StepExecutor>(
      plan, placement, std::move(backend),
      std::make_unique<comm::C10dCollectives>(std::move(group), placement.compute),
      std::move(limits), std::move(bodies));
}

}  // namespace zeromuon::bindings
