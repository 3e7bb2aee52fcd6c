// An executor as Python asks for one: on the devices of a placement, or on a backend that is given.
#pragma once

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "offload/backend.h"
#include "zero3/step/step_executor.h"

namespace zeromuon::bindings {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

// What the plan's flow says, with devices. Raises ValueError for a pair that no build serves: the
// shard on a GPU and the compute elsewhere.
offload::Placement placement_of(const zero3::StepPlan& plan, const at::Device& shard,
                                const at::Device& compute);

// name: equal on all ranks, and of no other executor of the group. Raises ValueError when the first
// four do not fit together.
std::unique_ptr<zero3::StepExecutor> make_executor(
    const zero3::StepPlan& plan, Group group, const offload::Placement& placement,
    offload::Backend backend, double stage_timeout_s, const std::string& name,
    zero3::StageBodies bodies = zero3::product_bodies());

}  // namespace zeromuon::bindings
