#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/base/check.h"
#include "python/bindings/core/bindings.h"
#include "python/bindings/core/make_executor.h"
#include "python/bindings/core/names.h"
#include "python/bindings/core/trace_rows.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using zero3::StepExecutor;
using zero3::SubGroupTask;
using namespace py::literals;

std::unique_ptr<StepExecutor> executor_on_devices(const zero3::StepPlan& plan, Group group,
                                                  const at::Device& shard,
                                                  const at::Device& compute,
                                                  ops::CpuKernels kernels, double stage_timeout_s,
                                                  const std::string& name, int cpu_threads) {
  require(
      kernels == ops::CpuKernels::kAuto || shard.is_cpu(), "cpu_kernels: got ", name_of(kernels),
      ", and the flat shard is on ", shard.str(),
      ", where they have nothing to do; leave the option out, or offload the optimizer to the CPU");
  const offload::Placement placement = placement_of(plan, shard, compute);
  return make_executor(plan, std::move(group), placement,
                       make_backend(placement, kernels, cpu_threads), stage_timeout_s, name);
}

void step(StepExecutor& self, const std::vector<SubGroupTask>& tasks) {
  const py::gil_scoped_release released;
  self.step(tasks);
}

at::Tensor zeros_of(StepExecutor& self, int64_t numel, DType dtype) {
  return self.registered_zeros(numel, dtype == DType::kFloat32 ? at::kFloat : at::kBFloat16);
}

py::dict as_dict(int64_t steps, const zero3::Counters& counters, const comm::Traffic& traffic) {
  return py::dict("steps"_a = steps, "seconds"_a = counters.seconds,
                  "bytes_sent"_a = traffic.bytes_sent, "bytes_self"_a = traffic.bytes_self,
                  "collectives"_a = traffic.calls,
                  "newton_schulz_matrices"_a = counters.newton_schulz_matrices,
                  "wall_seconds"_a = counters.wall_seconds);
}

}  // namespace

void bind_executor(py::module_& m) {
  py::class_<StepExecutor>(m, "StepExecutor")
      .def(py::init(&executor_on_devices), py::arg("plan"), py::arg("process_group"),
           py::arg("shard_device"), py::arg("compute_device"), py::kw_only(),
           py::arg("cpu_kernels"), py::arg("stage_timeout_s"), py::arg("name") = "",
           py::arg("cpu_threads") = 0)
      .def(
          "step", &step, py::arg("tasks"),
          "Steps the next sub-groups, in rising order, at the same time. Raises ValueError when "
          "they are others or a tensor is not what the plan expects (nothing is changed then), and "
          "StepError on every rank when a stage failed on any.")
      .def_property_readonly("next_sub_group", &StepExecutor::next_sub_group)
      .def_property_readonly("poisoned", &StepExecutor::poisoned,
                             "What ended a step half way; empty: nothing.")
      .def("poison", &StepExecutor::poison, py::arg("what"),
           "The caller's part of a step failed: no step until recover().")
      .def("record_trace", &StepExecutor::record_trace, py::arg("on"))
      .def(
          "take_trace", [](StepExecutor& self) { return trace_rows(self.take_trace()); },
          "The tasks since the last call, each a dict.")
      .def("host_bytes", [](const StepExecutor& self) { return self.buffers().host_bytes(); })
      .def("pinned_bytes", [](const StepExecutor& self) { return self.buffers().pinned_bytes(); })
      .def("registered_zeros", &zeros_of, py::arg("numel"), py::arg("dtype"),
           "[numel] zeros of pinned host memory, float32 or bfloat16; it may outlive this object.")
      .def("warning", &StepExecutor::memory_warning)
      .def("recover", &StepExecutor::recover,
           "Forgets an earlier failure, after a load. Raises StepError when the group is gone.")
      .def("counters", [](const StepExecutor& self) {
        return as_dict(self.steps(), self.counters(), self.traffic());
      });
  m.def(
      "no_counts", [] { return as_dict(0, {}, {}); },
      "The counters of an executor that did nothing.");
}

}  // namespace zeromuon::bindings
