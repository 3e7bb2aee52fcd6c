#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <optional>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

struct Array {
  const char* name;
  const at::Tensor& tensor;
};

DType dtype_of(const char* where, const Array& a) {
  switch (a.tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      throw_value_error(concat(where, ": expected ", a.name,
                               " in float32, bfloat16 or float16, got ", a.tensor.scalar_type()));
  }
}

float* floats_of(const char* where, const Array& a) {
  require(a.tensor.scalar_type() == at::kFloat, where, ": expected ", a.name, " in float32, got ",
          a.tensor.scalar_type());
  return static_cast<float*>(a.tensor.data_ptr());
}

ops::Typed typed(const char* where, const Array& a) {
  return {a.tensor.data_ptr(), dtype_of(where, a)};
}

ops::Typed typed(const char* where, const char* name, const OptionalTensor& tensor) {
  return tensor ? typed(where, {name, *tensor}) : ops::Typed();
}

void check_array(const char* where, const Array& a, const Array& first) {
  require(a.tensor.defined() && a.tensor.device().is_cpu() && a.tensor.is_contiguous() &&
              a.tensor.layout() == at::kStrided,
          where, ": expected ", a.name, " to be a contiguous tensor on the CPU, got ",
          !a.tensor.is_contiguous() ? "strides " : "one on ",
          !a.tensor.is_contiguous() ? concat(a.tensor.strides()) : a.tensor.device().str());
  require(a.tensor.numel() > 0, where, ": expected ", a.name, " to have elements, got none");
  require(a.tensor.numel() == first.tensor.numel(), where, ": expected ", a.name, " to have ",
          first.tensor.numel(), " elements like ", first.name, ", got ", a.tensor.numel());
}

void check_apart(const char* where, const Array& a, const Array& b) {
  const auto* begin_a = static_cast<const char*>(a.tensor.data_ptr());
  const auto* begin_b = static_cast<const char*>(b.tensor.data_ptr());
  require(begin_a + a.tensor.nbytes() <= begin_b || begin_b + b.tensor.nbytes() <= begin_a, where,
          ": expected arrays of their own, got ", a.name, " and ", b.name,
          ", which overlap in memory");
}

// Returns the number of elements.
int64_t check_arrays(const char* where, const std::vector<Array>& arrays) {
  for (const Array& a : arrays) check_array(where, a, arrays.front());
  for (size_t i = 0; i < arrays.size(); ++i) {
    for (size_t j = 0; j < i; ++j) check_apart(where, arrays[j], arrays[i]);
  }
  return arrays.front().tensor.numel();
}

int64_t check_arrays(const char* where, std::vector<Array> arrays, const OptionalTensor& low) {
  if (low) arrays.push_back({"low_precision", *low});
  return check_arrays(where, arrays);
}

void expect_finite(const char* where, const char* name, double value) {
  require(std::isfinite(value), where, ": expected a finite ", name, ", got ", value);
}

void expect_positive_or_zero(const char* where, const char* name, double value) {
  require(std::isfinite(value) && value >= 0.0, where, ": expected ", name,
          " of at least 0 and finite, got ", value);
}

void expect_beta(const char* where, const char* name, double value) {
  require(value >= 0.0 && value < 1.0, where, ": expected ", name,
          " of at least 0 and below 1, got ", value);
}

ops::Decay decay_of(const char* where, const std::string& name) {
  if (name == "decoupled") return ops::Decay::kDecoupled;
  if (name == "cautious") return ops::Decay::kCautious;
  require(name == "coupled", where, ": expected decay decoupled, cautious or coupled, got \"", name,
          "\"");
  return ops::Decay::kCoupled;
}

void adamw(const at::Tensor& weight, const at::Tensor& gradient, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const OptionalTensor& low, double lr,
           std::pair<double, double> betas, double eps, double weight_decay, int64_t step,
           float gradient_scale, const std::string& decay, ops::CpuKernels kernels) {
  constexpr const char* kWhere = "adamw_";
  const int64_t numel = check_arrays(kWhere,
                                     {{"weight", weight},
                                      {"gradient", gradient},
                                      {"exp_avg", exp_avg},
                                      {"exp_avg_sq", exp_avg_sq}},
                                     low);
  expect_finite(kWhere, "lr", lr);
  expect_beta(kWhere, "betas[0]", betas.first);
  expect_beta(kWhere, "betas[1]", betas.second);
  expect_positive_or_zero(kWhere, "eps", eps);
  expect_positive_or_zero(kWhere, "weight_decay", weight_decay);
  expect_finite(kWhere, "gradient_scale", gradient_scale);
  require(step >= 1, kWhere, ": expected a step of at least 1, got ", step);
  const ops::AdamWElement element(lr, betas.first, betas.second, eps, weight_decay, step,
                                  decay_of(kWhere, decay), gradient_scale);
  const ops::AdamWArrays arrays{
      floats_of(kWhere, {"weight", weight}), typed(kWhere, {"gradient", gradient}),
      typed(kWhere, {"exp_avg", exp_avg}), typed(kWhere, {"exp_avg_sq", exp_avg_sq}),
      typed(kWhere, "low_precision", low)};
  const py::gil_scoped_release released;
  ops::adamw(element, arrays, numel, kernels);
}

bool momentum(const at::Tensor& gradient, const at::Tensor& momentum, const at::Tensor& wire,
              double beta, ops::MomentumKind kind, bool nesterov, float gradient_scale,
              ops::CpuKernels kernels) {
  constexpr const char* kWhere = "momentum_";
  const int64_t numel =
      check_arrays(kWhere, {{"gradient", gradient}, {"momentum", momentum}, {"wire", wire}});
  expect_beta(kWhere, "beta", beta);
  expect_finite(kWhere, "gradient_scale", gradient_scale);
  const ops::MomentumElement element(kind, beta, nesterov, gradient_scale);
  const ops::MomentumArrays arrays{typed(kWhere, {"gradient", gradient}),
                                   typed(kWhere, {"momentum", momentum}),
                                   typed(kWhere, {"wire", wire})};
  const py::gil_scoped_release released;
  return ops::update_momentum(element, arrays, numel, kernels);
}

void apply(const at::Tensor& weight, const at::Tensor& update, const OptionalTensor& low, double lr,
           double weight_decay, double scale, bool cautious, ops::CpuKernels kernels) {
  constexpr const char* kWhere = "apply_";
  const int64_t numel = check_arrays(kWhere, {{"weight", weight}, {"update", update}}, low);
  expect_finite(kWhere, "lr", lr);
  expect_positive_or_zero(kWhere, "weight_decay", weight_decay);
  expect_finite(kWhere, "scale", scale);
  const ops::ApplyElement element(lr, weight_decay, scale,
                                  cautious ? ops::Decay::kCautious : ops::Decay::kDecoupled);
  const ops::ApplyArrays arrays{floats_of(kWhere, {"weight", weight}),
                                typed(kWhere, {"update", update}),
                                typed(kWhere, "low_precision", low)};
  const py::gil_scoped_release released;
  ops::apply_update(element, arrays, numel, kernels);
}

bool cast(const at::Tensor& dst, const at::Tensor& src, ops::CpuKernels kernels) {
  constexpr const char* kWhere = "cast_";
  const Array to{"dst", dst}, from{"src", src};
  const int64_t numel = check_arrays(kWhere, {to, from});
  const ops::Typed out = typed(kWhere, to), in = typed(kWhere, from);
  require(out.dtype == DType::kFloat32 || in.dtype == DType::kFloat32, kWhere,
          ": expected dst or src in float32, got ", name_of(out.dtype), " and ", name_of(in.dtype));
  const py::gil_scoped_release released;
  if (in.dtype == DType::kFloat32) {
    return ops::encode_values(static_cast<float*>(in.data), out, numel, kernels);
  }
  ops::decode_values(in, static_cast<float*>(out.data), numel, kernels);
  return true;
}

void stream_copy(const at::Tensor& dst, const at::Tensor& src) {
  const Array to{"dst", dst}, from{"src", src};
  const int64_t numel = check_arrays("stream_copy_", {to, from});
  float *out = floats_of("stream_copy_", to), *in = floats_of("stream_copy_", from);
  const py::gil_scoped_release released;
  ops::stream_copy(out, in, numel);
}

void stream_triad(const at::Tensor& dst, const at::Tensor& a, const at::Tensor& b, float scalar) {
  const Array to{"dst", dst}, left{"a", a}, right{"b", b};
  const int64_t numel = check_arrays("stream_triad_", {to, left, right});
  float* out = floats_of("stream_triad_", to);
  const float *x = floats_of("stream_triad_", left), *y = floats_of("stream_triad_", right);
  const py::gil_scoped_release released;
  ops::stream_triad(out, x, y, scalar, numel);
}

std::vector<std::pair<std::string, std::string>> cpu_kernels() {
  std::vector<std::pair<std::string, std::string>> out;
  for (int i = 0; i < ops::kCpuKernels; ++i) {
    const auto kernels = static_cast<ops::CpuKernels>(i);
    out.emplace_back(name_of(kernels), why_not(kernels));
  }
  return out;
}

void bind_choice(py::module_& m) {
  m.def("cpu_kernels", &cpu_kernels,
        "Every value of `kernels` with \"\" if it can run here, else the reason why not.");
  m.def(
      "chosen_cpu_kernels", [] { return name_of(ops::resolve(ops::CpuKernels::kAuto)); },
      "What \"auto\" stands for on this CPU.");
}

void bind_memory(py::module_& m) {
  m.def(
      "stream_copy_", &stream_copy, py::arg("dst"), py::arg("src"),
      "dst = src over float32 CPU tensors with the stores that are best for it; for measurements.");
  m.def("stream_triad_", &stream_triad, py::arg("dst"), py::arg("a"), py::arg("b"),
        py::arg("scalar"), "dst = a + scalar*b, otherwise as stream_copy_.");
  m.def("cast_", &cast, py::arg("dst"), py::arg("src"), py::arg("kernels") = "auto",
        "dst = src over (L,) CPU tensors, one float32, the other float32, bfloat16 or float16. "
        "False when a value rounded from float32 is NaN or infinite.");
}

}  // namespace

void bind_elementwise(py::module_& m) {
  bind_choice(m);
  bind_memory(m);
  m.def("adamw_", &adamw, py::arg("weight"), py::arg("gradient"), py::arg("exp_avg"),
        py::arg("exp_avg_sq"), py::arg("low_precision") = py::none(), py::kw_only(), py::arg("lr"),
        py::arg("betas"), py::arg("eps"), py::arg("weight_decay"), py::arg("step"),
        py::arg("gradient_scale") = 1.0f, py::arg("decay") = "decoupled",
        py::arg("kernels") = "auto",
        "One AdamW step in place on contiguous (L,) CPU tensors: weight float32; gradient float32 "
        "or bfloat16, multiplied by gradient_scale; states both float32 or both bfloat16; decay: "
        "decoupled, cautious or coupled; low_precision, bfloat16 or float16, receives the cast of "
        "the new weight. Raises "
        "ValueError for other tensors, overlapping memory and hyper-parameters out of range.");
  m.def("momentum_", &momentum, py::arg("gradient"), py::arg("momentum"), py::arg("wire"),
        py::kw_only(), py::arg("beta"), py::arg("kind") = "ema", py::arg("nesterov") = true,
        py::arg("gradient_scale") = 1.0f, py::arg("kernels") = "auto",
        "Advances momentum in place and writes the tensor to orthogonalise to wire; each (L,) "
        "float32 or bfloat16. False when a written value is NaN or infinite. Raises as adamw_.");
  m.def(
      "apply_", &apply, py::arg("weight"), py::arg("update"), py::arg("low_precision") = py::none(),
      py::kw_only(), py::arg("lr"), py::arg("weight_decay"), py::arg("scale"),
      py::arg("cautious") = false, py::arg("kernels") = "auto",
      "weight = weight*(1 - lr*weight_decay) - lr*scale*update in place, cautious: the factor only "
      "where update*weight >= 0; update float32 or bfloat16, low_precision as in adamw_. Raises as "
      "adamw_.");
}

}  // namespace zeromuon::bindings
