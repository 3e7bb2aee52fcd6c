#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "offload/fake/fake_backend.h"
#include "python/bindings/core/make_executor.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

std::unique_ptr<zero3::StepExecutor> executor_on_fake_device(
    const zero3::StepPlan& plan, Group group, const at::Device& shard, const at::Device& compute,
    ops::CpuKernels kernels, double stage_timeout_s, uint64_t seed) {
  return make_executor(plan, std::move(group), placement_of(plan, shard, compute),
                       offload::make_fake_backend({.seed = seed, .kernels = kernels}),
                       stage_timeout_s);
}

}  // namespace

void bind_fake_device(py::module_& m) {
  m.def("fake_device_executor", &executor_on_fake_device, py::arg("plan"), py::arg("process_group"),
        py::arg("shard_device"), py::arg("compute_device"), py::kw_only(), py::arg("cpu_kernels"),
        py::arg("stage_timeout_s"), py::arg("seed") = 0,
        "A _core.StepExecutor of a staged plan on a device of its own memory, which the host "
        "cannot touch, with lanes that are late as the seed says. Arguments as _core.StepExecutor; "
        "both devices are cpu.");
}

}  // namespace zeromuon::bindings
