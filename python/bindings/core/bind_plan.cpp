#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "csrc/ops/newton_schulz/tuned_table.h"
#include "python/bindings/core/bindings.h"
#include "python/bindings/core/names.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/step_costs.h"
#include "zero3/plan/step_plan.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using zero3::Flow;
using zero3::ParamSpec;
using zero3::PlanOptions;
using zero3::Role;
using zero3::StepPlan;
using zero3::SubGroupSpec;
using namespace py::literals;

// Each of blocks: row_begin, row_end, col_begin, col_end, count, period of a MatrixBlock.
ParamSpec make_param(std::string name, int64_t numel, int64_t chunk, int64_t shard_offset,
                     int64_t rows, int64_t cols, bool decay, bool transposed,
                     const std::vector<std::array<int64_t, 6>>& blocks) {
  ParamSpec spec{{std::move(name), numel, chunk, shard_offset, rows, cols}, decay, transposed, {}};
  for (const auto& [row_begin, row_end, col_begin, col_end, count, period] : blocks) {
    spec.blocks.push_back({0, row_begin, row_end, col_begin, col_end, count, period});
  }
  return spec;
}

std::pair<int64_t, int64_t> real_range(int64_t numel, int world_size, int rank) {
  const zero3::ShardRange range = zero3::zero3_range(numel, world_size, rank);
  return {range.begin, range.numel};
}

void bind_layout(py::module_& m) {
  py::class_<ParamSpec>(m, "ParamSpec")
      .def(py::init(&make_param), py::kw_only(), py::arg("name"), py::arg("numel"),
           py::arg("chunk"), py::arg("shard_offset"), py::arg("rows"), py::arg("cols"),
           py::arg("decay"), py::arg("transposed"), py::arg("blocks") = py::tuple(),
           "blocks: of a matrix parameter, (row_begin, row_end, col_begin, col_end, count, period) "
           "of each matrix in its (rows, cols) view: `count` ranges of rows, `period` apart, of a "
           "range of columns. Without any the view is one matrix.");
  py::class_<SubGroupSpec>(m, "SubGroupSpec")
      .def(py::init<Role, std::vector<ParamSpec>>(), py::arg("role"), py::arg("params"));
  m.def("zero3_chunk", &zero3::zero3_chunk, py::arg("numel"), py::arg("world_size"),
        "Elements of a parameter's chunk on every rank, padding included.");
  m.def("zero3_range", &real_range, py::arg("numel"), py::arg("world_size"), py::arg("rank"),
        "The first element of a parameter that a rank holds, and how many.");
  m.def(
      "zero3_sub_groups", &zero3::zero3_sub_groups, py::arg("numels"), py::arg("world_size"),
      py::arg("sub_group_size"),
      "How many of the parameters of a group, by their sizes and in order, each sub-group takes.");
}

void bind_newton_schulz(py::module_& m) {
  py::class_<ops::ProductTarget>(m, "ProductTarget")
      .def_property_readonly("name", &ops::ProductTarget::name,
                             "Instruction set and libraries, or cuda.")
      .def_property_readonly("row_name", &ops::row_name,
                             "As in the tuned table, whose rows of this name are used.");
  m.def("this_cpu", &ops::this_cpu, "The ProductTarget of this processor and build.");
  m.def("cuda_target", &ops::cuda_target, py::arg("gpu") = "",
        "The ProductTarget of a GPU. gpu: which kind: bits are equal on one kind only.");
  py::class_<ops::NewtonSchulzRequest>(m, "NewtonSchulzRequest")
      .def(py::init<ops::NewtonSchulzForm, ops::NewtonSchulzDType, ops::CoefficientSet>(),
           py::kw_only(), py::arg("form"), py::arg("dtype"), py::arg("coefficients"));
}

void bind_options(py::module_& m) {
  py::class_<Flow>(m, "Flow",
                   "staged: the flat shard is on the CPU and the compute device is another. "
                   "momentum_home: shard, device or streamed. casts: none, with_shard or "
                   "on_device: where the low-precision weights lie that steps write.")
      .def(py::init<bool, offload::MomentumHome, DType, zero3::CastWeights>(), py::kw_only(),
           py::arg("staged"), py::arg("momentum_home"), py::arg("momentum_dtype"),
           py::arg("casts"));
  py::class_<PlanOptions>(m, "PlanOptions",
                          "target: what Newton-Schulz runs on. lanes: threads that may take a "
                          "small matrix each. bucket_bytes, slots: 0 lets the plan choose; "
                          "max_bytes_in_flight: of all buffers of a rank, 0 is no limit.")
      .def(py::init<int, ops::NewtonSchulzRequest, ops::ProductTarget, int, zero3::Scale, DType,
                    int64_t, int, int64_t, Flow>(),
           py::kw_only(), py::arg("world_size"), py::arg("newton_schulz"), py::arg("target"),
           py::arg("lanes"), py::arg("scale"), py::arg("wire_dtype"), py::arg("bucket_bytes") = 0,
           py::arg("slots") = 0, py::arg("max_bytes_in_flight") = 0, py::arg("flow"));
}

py::dict buffer_bytes(const StepPlan& plan, int rank) {
  const offload::BufferSizes sizes = buffer_sizes(plan, rank);
  return py::dict("device"_a = sizes.device_bytes(), "host"_a = sizes.host_bytes());
}

py::list rows_of(const StepPlan& plan) {
  py::list out;
  for (const zero3::StageRow& row : plan.stages.bucket()) {
    py::list buffers;
    for (const auto buffer : row.buffers) buffers.append(name_of(buffer));
    out.append(py::dict("stage"_a = row.stage, "lane"_a = name_of(row.lane),
                        "urgent"_a = row.urgency == offload::Urgency::kUrgent,
                        "dram_bytes"_a = row.cost.dram_bytes, "link_bytes"_a = row.cost.link_bytes,
                        "device_bytes"_a = row.cost.device_bytes, "buffers"_a = buffers,
                        "changes"_a = name_of(row.changes)));
  }
  return out;
}

// Of the rank where each lane is busy longest.
py::dict seconds_of(const StepPlan& plan, double dram, double to_device, double to_host,
                    double device, double flops, double launch_s) {
  const offload::Rates rates{.dram_bytes_per_s = dram,
                             .to_device_bytes_per_s = to_device,
                             .to_host_bytes_per_s = to_host,
                             .flops_per_s = flops,
                             .device_bytes_per_s = device,
                             .launch_s = launch_s};
  std::array<double, offload::kLaneKinds> longest{};
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    const auto busy = zero3::busy_seconds(plan, rank, rates);
    for (size_t lane = 0; lane < busy.size(); ++lane) {
      longest[lane] = std::max(longest[lane], busy[lane]);
    }
  }
  py::dict seconds;
  for (size_t lane = 0; lane < longest.size(); ++lane) {
    seconds[name_of(static_cast<offload::LaneKind>(lane))] = longest[lane];
  }
  return seconds;
}

}  // namespace

void bind_plan(py::module_& m) {
  bind_layout(m);
  bind_newton_schulz(m);
  bind_options(m);
  py::class_<StepPlan>(m, "StepPlan")
      .def("__str__", &StepPlan::table)
      .def("table", &StepPlan::table, "The plan for people.")
      .def("canonical_text", &StepPlan::canonical_text, "What the hash covers, one line each.")
      .def_property_readonly("hash", &StepPlan::hash)
      .def_property_readonly("arithmetic_hash", &StepPlan::arithmetic_hash)
      .def_property_readonly(
          "products",
          [](const StepPlan& plan) {
            std::vector<std::pair<std::pair<int64_t, int64_t>, std::string>> found;
            for (const auto& ns : plan.newton_schulz) {
              found.push_back({{ns.rows, ns.cols}, name_of(ns.dtype)});
            }
            return found;
          },
          "((rows, columns), data type of the factors) of each shape that Newton-Schulz meets.")
      .def_property_readonly("loads", [](const StepPlan& plan) { return plan.loads; })
      .def("buffer_bytes", &buffer_bytes, py::arg("rank"),
           "Bytes of the buffers that serve every bucket on a rank: on the compute device, and on "
           "the host, pinned.")
      .def_property_readonly(
          "stages", &rows_of,
          "The stages of a bucket in order, each a dict: stage, lane, urgent, buffers, changes, "
          "and "
          "the bytes per element of the rank's part of the bucket: dram_, link_ and device_bytes.")
      .def("seconds", &seconds_of, py::kw_only(), py::arg("dram_bytes_per_s"),
           py::arg("to_device_bytes_per_s"), py::arg("to_host_bytes_per_s"),
           py::arg("device_bytes_per_s"), py::arg("flops_per_s"), py::arg("launch_s") = 0,
           "{lane: seconds that it is busy in a step, on the rank where that is longest} at rates "
           "of one rank; collectives take no time.")
      .def("framing_bytes", &zero3::framing_bytes, py::arg("rank"),
           "Bytes that a rank sends in a step of one call beside the elements: flag words, what "
           "aligns the segments, and the records with which the call ends.");
  py::list lanes;
  for (int lane = 0; lane < offload::kLaneKinds; ++lane) {
    lanes.append(name_of(static_cast<offload::LaneKind>(lane)));
  }
  m.attr("LANES") = py::tuple(lanes);
  m.def("make_step_plan", &zero3::make_step_plan, py::arg("options"), py::arg("sub_groups"),
        "Plans the optimizer step. Raises ValueError for a layout that does not add up and a limit "
        "that cannot be kept.");
}

}  // namespace zeromuon::bindings
