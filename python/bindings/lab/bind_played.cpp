#include <pybind11/stl.h>

#include "python/bindings/core/trace_rows.h"
#include "python/bindings/lab/bindings.h"
#include "zero3/played/played_step.h"

namespace py = pybind11;

namespace zeromuon::bindings {

void bind_played(py::module_& m) {
  m.def(
      "play_step",
      [](const zero3::StepPlan& plan, double dram, double to_device, double to_host, double flops,
         double device, double wire, double wire_latency_s, double task_latency_s, double launch_s,
         bool fused) {
        const offload::Rates rates{.dram_bytes_per_s = dram,
                                   .to_device_bytes_per_s = to_device,
                                   .to_host_bytes_per_s = to_host,
                                   .flops_per_s = flops,
                                   .wire_bytes_per_s = wire,
                                   .wire_latency_s = wire_latency_s,
                                   .task_latency_s = task_latency_s,
                                   .device_bytes_per_s = device,
                                   .launch_s = launch_s};
        zero3::PlayedStep step;
        {
          const py::gil_scoped_release released;
          step = zero3::play_step(plan, rates, fused);
        }
        py::dict out;
        out["makespan_s"] = step.makespan_s;
        out["wire_bytes"] = step.wire_bytes;
        py::list ranks;
        for (const auto& events : step.events) ranks.append(trace_rows(events));
        out["events"] = ranks;
        return out;
      },
      py::arg("plan"), py::kw_only(), py::arg("dram_bytes_per_s"), py::arg("to_device_bytes_per_s"),
      py::arg("to_host_bytes_per_s"), py::arg("flops_per_s"), py::arg("device_bytes_per_s"),
      py::arg("wire_bytes_per_s"), py::arg("wire_latency_s"), py::arg("task_latency_s"),
      py::arg("launch_s"), py::arg("fused") = true,
      "Plays a staged step of all ranks of the plan on a virtual clock, with rates per rank in "
      "place of work: makespan_s, wire_bytes (sent, per rank), and per rank its tasks as "
      "StepExecutor.take_trace returns them. fused: all sub-groups at the same time; else one "
      "after the other.");
}

}  // namespace zeromuon::bindings
