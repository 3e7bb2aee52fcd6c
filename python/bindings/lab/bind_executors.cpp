#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

#include "csrc/base/check.h"
#include "offload/fake/fake_backend.h"
#include "python/bindings/core/make_executor.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using offload::SlotBuffer;
using zero3::BucketStages;

// The body of a stage that the product does not have: it takes a row in the plan and this, and no
// line of the product. On the owner, in host memory and fp32. factors: per block of the sub-group.
void multiply_blocks(const BucketStages& bucket, const std::vector<float>& factors) {
  for (const zero3::RoutePiece& piece : bucket.route.owner_pieces) {
    auto* const update =
        reinterpret_cast<float*>(bucket.slot[SlotBuffer::kOwnerWire] + piece.wire_offset);
    for (int64_t i = 0; i < piece.run.numel(); ++i) {
      update[i] *= factors.at(piece.block_of(i / piece.run.length));
    }
  }
}

std::unique_ptr<zero3::StepExecutor> executor_with_factors(zero3::StepPlan plan, Group group,
                                                           const std::vector<float>& factors) {
  require(plan.options.wire_dtype == DType::kFloat32,
          "factors: expected a plan with a float32 wire");
  plan.stages.on_owner.push_back({"factors",
                                  "multiply",
                                  offload::LaneKind::kCompute,
                                  offload::Urgency::kUrgent,
                                  {},
                                  {SlotBuffer::kOwnerWire}});
  zero3::StageBodies bodies = zero3::product_bodies();
  bodies.bucket["multiply"] = [factors](const BucketStages& b) { multiply_blocks(b, factors); };
  const offload::Placement host{at::kCPU, at::kCPU};
  return make_executor(plan, std::move(group), host,
                       offload::make_backend(host, ops::CpuKernels::kAuto), 0.0, "lab",
                       std::move(bodies));
}

std::unique_ptr<zero3::StepExecutor> executor_on_fake_device(
    const zero3::StepPlan& plan, Group group, const at::Device& shard, const at::Device& compute,
    ops::CpuKernels kernels, double stage_timeout_s, const std::string& name, int cpu_threads,
    uint64_t seed) {
  return make_executor(
      plan, std::move(group), placement_of(plan, shard, compute),
      offload::make_fake_backend(
          {.seed = seed, .threads_per_lane = std::max(1, cpu_threads), .kernels = kernels}),
      stage_timeout_s, name);
}

}  // namespace

void bind_executors(py::module_& m) {
  m.def("executor_with_factors", &executor_with_factors, py::arg("plan"), py::arg("process_group"),
        py::arg("factors"),
        "A _core.StepExecutor on the host whose owners multiply the update of each block by its "
        "factor, in "
        "a stage of its own after Newton-Schulz. factors: one per block of each sub-group.");
  m.def("fake_device_executor", &executor_on_fake_device, py::arg("plan"), py::arg("process_group"),
        py::arg("shard_device"), py::arg("compute_device"), py::kw_only(), py::arg("cpu_kernels"),
        py::arg("stage_timeout_s"), py::arg("name") = "", py::arg("cpu_threads") = 0,
        py::arg("seed") = 0,
        "A _core.StepExecutor of a staged plan on a device of its own memory, which the host "
        "cannot touch, with lanes that are late as the seed says. Arguments as _core.StepExecutor; "
        "both devices are cpu.");
}

}  // namespace zeromuon::bindings
