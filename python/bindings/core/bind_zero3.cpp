#include <pybind11/stl.h>

#include <chrono>
#include <iostream>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "csrc/base/check.h"
#include "csrc/comm/c10d_collectives.h"
#include "offload/fake/fake_backend.h"
#include "python/bindings/core/bindings.h"
#include "zero3/plan/step_plan.h"
#include "zero3/step/step_executor.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using zero3::AdamWTask;
using zero3::MatrixBlock;
using zero3::MuonTask;
using zero3::ParamSpec;
using zero3::PlanOptions;
using zero3::Role;
using zero3::ShardLayout;
using zero3::StepExecutor;
using zero3::StepPlan;
using zero3::SubGroupSpec;
using zero3::SubGroupTask;

DType parse_float(const std::string& name, const char* option) {
  constexpr const char* kNames[] = {"float32", "bfloat16"};
  return index_of(kNames, name, option) == 0 ? DType::kFloat32 : DType::kBFloat16;
}

offload::MomentumHome parse_home(const std::string& name) {
  constexpr const char* kNames[] = {"shard", "device", "streamed"};
  return static_cast<offload::MomentumHome>(index_of(kNames, name, "momentum_home"));
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
      .def_property_readonly("arithmetic_hash", &StepPlan::arithmetic_hash)
      .def_property_readonly("loads", [](const StepPlan& plan) { return plan.loads; })
      .def(
          "buffer_bytes",
          [](const StepPlan& plan, int rank) {
            const offload::BufferSizes sizes = buffer_sizes(plan, rank);
            py::dict bytes;
            bytes["device"] = sizes.device_bytes();
            bytes["host"] = sizes.host_bytes();
            return bytes;
          },
          py::arg("rank"),
          "Bytes of the buffers that serve every bucket on a rank: on the compute device, and on "
          "the "
          "host, pinned.");
  m.def(
      "make_step_plan",
      [](int world_size, const std::string& form, const std::string& dtype,
         const ops::CoefficientSet& coefficients, bool on_cuda, int lanes, const std::string& scale,
         const std::string& wire_dtype, int64_t bucket_bytes, int slots,
         int64_t max_bytes_in_flight, bool staged, const std::string& momentum_home,
         const std::string& momentum_dtype, bool casts_weights,
         const std::vector<SubGroupSpec>& sub_groups) {
        const PlanOptions options{
            world_size,
            {ops::parse_form(form), ops::parse_newton_schulz_dtype(dtype), coefficients},
            on_cuda ? ops::cuda_target() : ops::this_cpu(),
            lanes,
            zero3::parse_scale(scale),
            parse_float(wire_dtype, "wire_dtype"),
            bucket_bytes,
            slots,
            max_bytes_in_flight,
            {staged, parse_home(momentum_home), parse_float(momentum_dtype, "momentum_dtype"),
             casts_weights}};
        return make_step_plan(options, sub_groups);
      },
      py::kw_only(), py::arg("world_size"), py::arg("form"), py::arg("dtype"),
      py::arg("coefficients"), py::arg("on_cuda"), py::arg("lanes"), py::arg("scale"),
      py::arg("wire_dtype"), py::arg("bucket_bytes") = 0, py::arg("slots") = 0,
      py::arg("max_bytes_in_flight") = 0, py::arg("staged") = false,
      py::arg("momentum_home") = "shard", py::arg("momentum_dtype") = "float32",
      py::arg("casts_weights") = false, py::arg("sub_groups"),
      "Plans the optimizer step. on_cuda: Newton-Schulz runs on a GPU; lanes: threads that may "
      "take a small matrix each; bucket_bytes, slots, max_bytes_in_flight: 0 lets the plan choose; "
      "staged: the flat shard is on the CPU and the compute device is another; momentum_home: "
      "shard, device or streamed; casts_weights: steps write low-precision weights. Raises "
      "ValueError for a layout that does not add up and a limit that cannot be kept.");
}

// fake_device_seed: none runs on the real devices.
std::unique_ptr<StepExecutor> make_executor(const StepPlan& plan,
                                            c10::intrusive_ptr<c10d::ProcessGroup> group,
                                            const at::Device& shard, const at::Device& compute,
                                            const std::string& cpu_kernels, double stage_timeout_s,
                                            std::optional<uint64_t> fake_device_seed) {
  offload::Placement placement = offload::choose_placement(shard, compute);
  placement.momentum = plan.options.flow.momentum;
  placement.momentum_dtype = plan.options.flow.momentum_dtype;
  const ops::CpuKernels kernels = ops::parse_cpu_kernels(cpu_kernels);
  require(
      kernels == ops::CpuKernels::kAuto || shard.is_cpu(), "cpu_kernels: got ", cpu_kernels,
      ", and the flat shard is on ", shard.str(),
      ", where they have nothing to do; leave the option out, or offload the optimizer to the CPU");
  zero3::StepLimits limits{
      std::chrono::milliseconds(static_cast<int64_t>(1e3 * stage_timeout_s)),
      [](const std::string& text) { std::cerr << "zeromuon: " << text << std::endl; }};
  offload::Backend backend = fake_device_seed
                                 ? offload::make_fake_backend({.seed = *fake_device_seed})
                                 : offload::make_backend(placement, kernels);
  return std::make_unique<StepExecutor>(
      plan, placement, std::move(backend),
      std::make_unique<comm::C10dCollectives>(std::move(group), compute), std::move(limits));
}

ops::MomentumKind parse_kind(const std::string& kind) {
  require(kind == "ema" || kind == "heavy_ball",
          "momentum_kind: expected ema or heavy_ball, got \"", kind, "\"");
  return kind == "ema" ? ops::MomentumKind::kEma : ops::MomentumKind::kHeavyBall;
}

ops::Decay decay_of(bool decoupled, bool cautious) {
  require(decoupled || !cautious,
          "cautious_wd: got True where the weight decay is coupled (L2 regularisation), expected "
          "False");
  if (!decoupled) return ops::Decay::kCoupled;
  return cautious ? ops::Decay::kCautious : ops::Decay::kDecoupled;
}

at::Tensor or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor ? *tensor : at::Tensor();
}

// Hyper-parameters carry the names of the options: python/zeromuon/optimizer/options.py.
void bind_tasks(py::module_& m) {
  py::class_<MuonTask>(m, "MuonTask")
      .def(py::init([](int sub_group, const at::Tensor& weight, const at::Tensor& gradient,
                       const at::Tensor& exp_avg, const std::optional<at::Tensor>& low_precision,
                       double lr, double weight_decay, bool cautious_wd, double momentum,
                       const std::string& momentum_kind, bool nesterov, float gradient_scale) {
             return MuonTask{sub_group,
                             {weight, gradient, exp_avg, or_undefined(low_precision)},
                             {lr, weight_decay, momentum, parse_kind(momentum_kind), nesterov,
                              gradient_scale, decay_of(true, cautious_wd)}};
           }),
           py::arg("sub_group"), py::arg("weight"), py::arg("gradient"), py::arg("exp_avg"),
           py::arg("low_precision") = py::none(), py::kw_only(), py::arg("lr"),
           py::arg("weight_decay"), py::arg("cautious_wd"), py::arg("momentum"),
           py::arg("momentum_kind"), py::arg("nesterov"), py::arg("gradient_scale") = 1.0f);
  py::class_<AdamWTask>(m, "AdamWTask")
      .def(py::init([](int sub_group, const at::Tensor& weight, const at::Tensor& gradient,
                       const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                       const std::optional<at::Tensor>& low_precision, double lr,
                       double weight_decay, bool cautious_wd, std::pair<double, double> betas,
                       double eps, int64_t step, bool decoupled, float gradient_scale) {
             return AdamWTask{sub_group,
                              {weight, gradient, exp_avg, exp_avg_sq, or_undefined(low_precision)},
                              {lr, weight_decay, betas.first, betas.second, eps, step,
                               decay_of(decoupled, cautious_wd), gradient_scale}};
           }),
           py::arg("sub_group"), py::arg("weight"), py::arg("gradient"), py::arg("exp_avg"),
           py::arg("exp_avg_sq"), py::arg("low_precision") = py::none(), py::kw_only(),
           py::arg("lr"), py::arg("weight_decay"), py::arg("cautious_wd"), py::arg("betas"),
           py::arg("eps"), py::arg("step"), py::arg("decoupled") = true,
           py::arg("gradient_scale") = 1.0f);
}

void step(StepExecutor& self, const std::vector<SubGroupTask>& tasks) {
  const py::gil_scoped_release released;
  self.step(tasks);
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
  out["wall_seconds"] = counters.wall_seconds;
  return out;
}

}  // namespace

py::list trace_rows(const std::vector<zero3::TraceEvent>& events) {
  py::list out;
  for (const zero3::TraceEvent& event : events) {
    py::dict row;
    row["lane"] = name_of(static_cast<offload::LaneKind>(event.lane));
    row["stage"] = name_of(event.stage);
    row["sub_group"] = event.sub_group;
    row["bucket"] = event.bucket;
    row["begin_ns"] = event.begin_ns;
    row["end_ns"] = event.end_ns;
    out.append(row);
  }
  return out;
}

void bind_zero3(py::module_& m) {
  bind_plan(m);
  bind_tasks(m);
  py::class_<StepExecutor>(m, "StepExecutor")
      .def(py::init(&make_executor), py::arg("plan"), py::arg("process_group"),
           py::arg("shard_device"), py::arg("compute_device"), py::arg("cpu_kernels") = "auto",
           py::arg("stage_timeout_s") = 600.0, py::arg("fake_device_seed") = py::none())
      .def(
          "step", &step, py::arg("tasks"),
          "Steps sub-groups, in rising order, at the same time. Raises ValueError when a tensor is "
          "not what the plan expects (nothing is changed then), and StepError on every rank when "
          "a stage failed on any.")
      .def("record_trace", &StepExecutor::record_trace, py::arg("on"))
      .def(
          "take_trace", [](StepExecutor& self) { return trace_rows(self.take_trace()); },
          "The tasks since the last call, each a dict.")
      .def("host_bytes", [](const StepExecutor& self) { return self.buffers().host_bytes(); })
      .def("pinned_bytes", [](const StepExecutor& self) { return self.buffers().pinned_bytes(); })
      .def("warning", [](const StepExecutor& self) { return self.buffers().warning(); })
      .def("recover", &StepExecutor::recover, "Forgets an earlier failure, after a load.")
      .def("counters",
           [](const StepExecutor& self) { return as_dict(self.counters(), self.traffic()); });
  m.def(
      "no_counts", [] { return as_dict({}, {}); }, "The counters of an executor that did nothing.");
}

}  // namespace zeromuon::bindings
