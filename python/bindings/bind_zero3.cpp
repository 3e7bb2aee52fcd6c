#include <pybind11/stl.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "csrc/base/check.h"
#include "csrc/comm/c10d_collectives.h"
#include "python/bindings/bindings.h"
#include "zero3/step_executor.h"
#include "zero3/step_plan.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using zero3::AdamWHyperParameters;
using zero3::AdamWShard;
using zero3::MatrixBlock;
using zero3::MuonHyperParameters;
using zero3::MuonShard;
using zero3::ParamSpec;
using zero3::PlanOptions;
using zero3::Role;
using zero3::ShardLayout;
using zero3::StepExecutor;
using zero3::StepPlan;
using zero3::SubGroupSpec;

DType parse_wire(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  throw_value_error("wire_dtype: expected float32 or bfloat16, got \"" + name + "\"");
}

Role parse_role(const std::string& name) {
  if (name == "muon") return Role::kMuon;
  if (name == "adamw") return Role::kAdamW;
  throw_value_error("role: expected muon or adamw, got \"" + name + "\"");
}

void bind_plan(py::module_& m) {
  py::class_<MatrixBlock>(m, "MatrixBlock")
      .def(py::init([](int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
             return MatrixBlock{0, row_begin, row_end, col_begin, col_end};
           }),
           py::arg("row_begin"), py::arg("row_end"), py::arg("col_begin"), py::arg("col_end"));
  py::class_<ParamSpec>(m, "ParamSpec")
      .def(py::init([](std::string name, int64_t numel, int64_t chunk, int64_t shard_offset,
                       int64_t rows, int64_t cols, bool decay, bool transposed,
                       std::vector<MatrixBlock> blocks) {
             return ParamSpec{{std::move(name), numel, chunk, shard_offset, rows, cols},
                              decay,
                              transposed,
                              std::move(blocks)};
           }),
           py::kw_only(), py::arg("name"), py::arg("numel"), py::arg("chunk"),
           py::arg("shard_offset"), py::arg("rows"), py::arg("cols"), py::arg("decay"),
           py::arg("transposed"), py::arg("blocks") = std::vector<MatrixBlock>{});
  py::class_<SubGroupSpec>(m, "SubGroupSpec")
      .def(py::init([](const std::string& role, std::vector<ParamSpec> params) {
             return SubGroupSpec{parse_role(role), std::move(params)};
           }),
           py::arg("role"), py::arg("params"));
  py::class_<StepPlan>(m, "StepPlan")
      .def("__str__", &StepPlan::table)
      .def("table", &StepPlan::table, "The plan for people.")
      .def("canonical_text", &StepPlan::canonical_text, "What the hash covers, one line each.")
      .def_property_readonly("hash", &StepPlan::hash)
      .def_property_readonly("loads", [](const StepPlan& plan) { return plan.loads; })
      .def(
          "buffer_bytes",
          [](const StepPlan& plan, int rank) { return slot_sizes(plan, rank).total_bytes(); },
          py::arg("rank"), "Bytes of the buffers that serve every bucket on a rank.");
  m.def(
      "make_step_plan",
      [](int world_size, const std::string& form, const ops::CoefficientSet& coefficients,
         const std::string& scale, const std::string& wire_dtype, int64_t bucket_bytes,
         const std::vector<SubGroupSpec>& sub_groups) {
        const PlanOptions options{world_size,
                                  ops::parse_form(form),
                                  coefficients,
                                  zero3::parse_scale(scale),
                                  parse_wire(wire_dtype),
                                  bucket_bytes};
        return make_step_plan(options, sub_groups);
      },
      py::kw_only(), py::arg("world_size"), py::arg("form"), py::arg("coefficients"),
      py::arg("scale"), py::arg("wire_dtype"), py::arg("bucket_bytes") = PlanOptions{}.bucket_bytes,
      py::arg("sub_groups"),
      "Plans the optimizer step. Raises ValueError for a layout that does not add up.");
}

std::unique_ptr<StepExecutor> make_executor(const StepPlan& plan,
                                            c10::intrusive_ptr<c10d::ProcessGroup> group,
                                            const at::Device& shard, const at::Device& compute) {
  return std::make_unique<StepExecutor>(
      plan, offload::choose_placement(shard, compute),
      std::make_unique<comm::C10dCollectives>(std::move(group), compute));
}

void muon_step(StepExecutor& self, int sub_group, const at::Tensor& weight,
               const at::Tensor& gradient, const at::Tensor& momentum, double lr,
               double weight_decay, double beta, const std::string& kind, bool nesterov) {
  require(kind == "ema" || kind == "heavy_ball",
          "momentum_kind: expected ema or heavy_ball, got \"", kind, "\"");
  const auto parsed = kind == "ema" ? ops::MomentumKind::kEma : ops::MomentumKind::kHeavyBall;
  const MuonHyperParameters hyper{lr, weight_decay, beta, parsed, nesterov};
  const py::gil_scoped_release released;
  self.muon_step(sub_group, MuonShard{weight, gradient, momentum}, hyper);
}

void adamw_step(StepExecutor& self, int sub_group, const at::Tensor& weight,
                const at::Tensor& gradient, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                double lr, double weight_decay, std::pair<double, double> betas, double eps,
                int64_t step, bool decoupled) {
  const auto decay = decoupled ? ops::Decay::kDecoupled : ops::Decay::kCoupled;
  const AdamWHyperParameters hyper{lr, weight_decay, betas.first, betas.second, eps, step, decay};
  const py::gil_scoped_release released;
  self.adamw_step(sub_group, AdamWShard{weight, gradient, exp_avg, exp_avg_sq}, hyper);
}

py::dict as_dict(const zero3::Counters& counters, const comm::Traffic& traffic) {
  py::dict seconds;
  for (int s = 0; s < zero3::kStages; ++s) {
    seconds[name_of(static_cast<zero3::Stage>(s))] = counters.seconds[s];
  }
  py::dict out;
  out["seconds"] = seconds;
  out["bytes_sent"] = traffic.bytes_sent;
  out["bytes_self"] = traffic.bytes_self;
  out["collectives"] = traffic.calls;
  out["newton_schulz_matrices"] = counters.newton_schulz_matrices;
  return out;
}

}  // namespace

void bind_zero3(py::module_& m) {
  bind_plan(m);
  py::class_<StepExecutor>(m, "StepExecutor")
      .def(py::init(&make_executor), py::arg("plan"), py::arg("process_group"),
           py::arg("shard_device"), py::arg("compute_device"))
      .def("muon_step", &muon_step, py::arg("sub_group"), py::arg("weight"), py::arg("gradient"),
           py::arg("momentum"), py::kw_only(), py::arg("lr"), py::arg("weight_decay"),
           py::arg("beta"), py::arg("kind"), py::arg("nesterov"))
      .def("adamw_step", &adamw_step, py::arg("sub_group"), py::arg("weight"), py::arg("gradient"),
           py::arg("exp_avg"), py::arg("exp_avg_sq"), py::kw_only(), py::arg("lr"),
           py::arg("weight_decay"), py::arg("betas"), py::arg("eps"), py::arg("step"),
           py::arg("decoupled") = true)
      .def("recover", &StepExecutor::recover, "Forgets an earlier failure, after a load.")
      .def("counters",
           [](const StepExecutor& self) { return as_dict(self.counters(), self.traffic()); });
  m.def(
      "no_counts", [] { return as_dict({}, {}); }, "The counters of an executor that did nothing.");
}

}  // namespace zeromuon::bindings
