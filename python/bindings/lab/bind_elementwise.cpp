#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <map>
#include <optional>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of one call, checked as they are taken: arrays against those before, numbers for
// their range. where: what an error begins with.
class Arguments {
 public:
  explicit Arguments(const char* where) : where_(where) {}

  float* floats(const char* name, const at::Tensor& tensor) {
    check(name, tensor);
    require(tensor.scalar_type() == at::kFloat, where_, ": expected ", name, " in float32, got ",
            tensor.scalar_type());
    return static_cast<float*>(tensor.data_ptr());
  }

  ops::Typed typed(const char* name, const at::Tensor& tensor) {
    check(name, tensor);
    return {tensor.data_ptr(), dtype_of(name, tensor)};
  }

  ops::Typed typed(const char* name, const OptionalTensor& tensor) {
    return tensor ? typed(name, *tensor) : ops::Typed();
  }

  double finite(const char* name, double value) const {
    require(std::isfinite(value), where_, ": expected a finite ", name, ", got ", value);
    return value;
  }

  double positive_or_zero(const char* name, double value) const {
    require(std::isfinite(value) && value >= 0.0, where_, ": expected ", name,
            " of at least 0 and finite, got ", value);
    return value;
  }

  double beta(const char* name, double value) const {
    require(value >= 0.0 && value < 1.0, where_, ": expected ", name,
            " of at least 0 and below 1, got ", value);
    return value;
  }

  int64_t numel() const { return arrays_.front().second.numel(); }

 private:
  DType dtype_of(const char* name, const at::Tensor& tensor) const {
    static const std::map<at::ScalarType, DType> kTypes{{at::kFloat, DType::kFloat32},
                                                        {at::kBFloat16, DType::kBFloat16},
                                                        {at::kHalf, DType::kFloat16}};
    const auto found = kTypes.find(tensor.scalar_type());
    require(found != kTypes.end(), where_, ": expected ", name,
            " in float32, bfloat16 or float16, got ", tensor.scalar_type());
    return found->second;
  }

  void check(const char* name, const at::Tensor& tensor) {
    require(tensor.device().is_cpu() && tensor.is_contiguous(), where_, ": expected ", name,
            " to be a contiguous tensor on the CPU, got strides ", tensor.strides(), " on ",
            tensor.device());
    require(tensor.numel() > 0, where_, ": expected ", name, " to have elements, got none");
    for (const auto& [before, other] : arrays_) {
      require(tensor.numel() == numel(), where_, ": expected ", name, " to have ", numel(),
              " elements like ", arrays_.front().first, ", got ", tensor.numel());
      const auto* begin = static_cast<const char*>(tensor.data_ptr());
      const auto* other_begin = static_cast<const char*>(other.data_ptr());
      require(begin + tensor.nbytes() <= other_begin || other_begin + other.nbytes() <= begin,
              where_, ": expected arrays of their own, got ", before, " and ", name,
              ", which overlap in memory");
    }
    arrays_.emplace_back(name, tensor);
  }

  const char* where_;
  std::vector<std::pair<const char*, at::Tensor>> arrays_;
};

ops::Decay decay_of(const std::string& name) {
  if (name == "decoupled") return ops::Decay::kDecoupled;
  if (name == "cautious") return ops::Decay::kCautious;
  require(name == "coupled", "adamw_: expected decay decoupled, cautious or coupled, got \"", name,
          "\"");
  return ops::Decay::kCoupled;
}

bool adamw(const at::Tensor& weight, const at::Tensor& gradient, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const OptionalTensor& low, double lr,
           std::pair<double, double> betas, double eps, double weight_decay, int64_t step,
           float gradient_scale, const std::string& decay, ops::CpuKernels kernels) {
  Arguments a("adamw_");
  const ops::AdamWArrays arrays{a.floats("weight", weight), a.typed("gradient", gradient),
                                a.typed("exp_avg", exp_avg), a.typed("exp_avg_sq", exp_avg_sq),
                                a.typed("low_precision", low)};
  a.finite("gradient_scale", gradient_scale);
  require(step >= 1, "adamw_: expected a step of at least 1, got ", step);
  const ops::AdamWElement element(a.finite("lr", lr), a.beta("betas[0]", betas.first),
                                  a.beta("betas[1]", betas.second), a.positive_or_zero("eps", eps),
                                  a.positive_or_zero("weight_decay", weight_decay), step,
                                  decay_of(decay), gradient_scale);
  const py::gil_scoped_release released;
  return ops::adamw(element, arrays, a.numel(), kernels);
}

bool momentum(const at::Tensor& gradient, const at::Tensor& momentum, const at::Tensor& wire,
              double beta, ops::MomentumKind kind, bool nesterov, float gradient_scale,
              ops::CpuKernels kernels) {
  Arguments a("momentum_");
  const ops::MomentumArrays arrays{a.typed("gradient", gradient), a.typed("momentum", momentum),
                                   a.typed("wire", wire)};
  a.finite("gradient_scale", gradient_scale);
  const ops::MomentumElement element(kind, a.beta("beta", beta), nesterov, gradient_scale);
  const py::gil_scoped_release released;
  return ops::update_momentum(element, arrays, a.numel(), kernels);
}

bool apply(const at::Tensor& weight, const at::Tensor& update, const OptionalTensor& low, double lr,
           double weight_decay, double scale, bool cautious, ops::CpuKernels kernels) {
  Arguments a("apply_");
  const ops::ApplyArrays arrays{a.floats("weight", weight), a.typed("update", update),
                                a.typed("low_precision", low)};
  const ops::ApplyElement element(
      a.finite("lr", lr), a.positive_or_zero("weight_decay", weight_decay),
      a.finite("scale", scale), cautious ? ops::Decay::kCautious : ops::Decay::kDecoupled);
  const py::gil_scoped_release released;
  return ops::apply_update(element, arrays, a.numel(), kernels);
}

bool cast(const at::Tensor& dst, const at::Tensor& src, ops::CpuKernels kernels) {
  Arguments a("cast_");
  const ops::Typed out = a.typed("dst", dst), in = a.typed("src", src);
  require(out.dtype == DType::kFloat32 || in.dtype == DType::kFloat32,
          "cast_: expected dst or src in float32, got ", name_of(out.dtype), " and ",
          name_of(in.dtype));
  const py::gil_scoped_release released;
  if (in.dtype == DType::kFloat32) {
    return ops::encode_values(static_cast<float*>(in.data), out, a.numel(), kernels);
  }
  ops::decode_values(in, static_cast<float*>(out.data), a.numel(), kernels);
  return true;
}

void stream_copy(const at::Tensor& dst, const at::Tensor& src) {
  Arguments a("stream_copy_");
  float *out = a.floats("dst", dst), *in = a.floats("src", src);
  const py::gil_scoped_release released;
  ops::stream_copy(out, in, a.numel());
}

void stream_triad(const at::Tensor& dst, const at::Tensor& left, const at::Tensor& right,
                  float scalar) {
  Arguments a("stream_triad_");
  float *out = a.floats("dst", dst), *x = a.floats("a", left), *y = a.floats("b", right);
  const py::gil_scoped_release released;
  ops::stream_triad(out, x, y, scalar, a.numel());
}

std::vector<std::pair<std::string, std::string>> cpu_kernels() {
  std::vector<std::pair<std::string, std::string>> out;
  for (int i = 0; i < ops::kCpuKernels; ++i) {
    const auto kernels = static_cast<ops::CpuKernels>(i);
    out.emplace_back(name_of(kernels), why_not(kernels));
  }
  return out;
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def("cpu_kernels", &cpu_kernels,
        "Every value of `kernels` with \"\" if it can run here, else the reason why not.");
  m.def(
      "chosen_cpu_kernels", [] { return name_of(ops::resolve(ops::CpuKernels::kAuto)); },
      "What \"auto\" stands for on this CPU.");
  m.def(
      "stream_copy_", &stream_copy, py::arg("dst"), py::arg("src"),
      "dst = src over float32 CPU tensors with the stores that are best for it; for measurements.");
  m.def("stream_triad_", &stream_triad, py::arg("dst"), py::arg("a"), py::arg("b"),
        py::arg("scalar"), "dst = a + scalar*b, otherwise as stream_copy_.");
  m.def("cast_", &cast, py::arg("dst"), py::arg("src"), py::arg("kernels") = "auto",
        "dst = src over (L,) CPU tensors, one float32, the other float32, bfloat16 or float16. "
        "False when a value rounded from float32 is NaN or infinite.");
  m.def("adamw_", &adamw, py::arg("weight"), py::arg("gradient"), py::arg("exp_avg"),
        py::arg("exp_avg_sq"), py::arg("low_precision") = py::none(), py::kw_only(), py::arg("lr"),
        py::arg("betas"), py::arg("eps"), py::arg("weight_decay"), py::arg("step"),
        py::arg("gradient_scale") = 1.0f, py::arg("decay") = "decoupled",
        py::arg("kernels") = "auto",
        "One AdamW step in place on contiguous (L,) CPU tensors: weight float32; gradient float32 "
        "or bfloat16, multiplied by gradient_scale; states both float32 or both bfloat16; decay: "
        "decoupled, cautious or coupled; low_precision, bfloat16 or float16, receives the cast of "
        "the new weight. "
        "False when a value that was written to any of them is NaN or infinite. Raises ValueError "
        "for other tensors, overlapping memory and hyper-parameters out of range.");
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
      "where update*weight >= 0; update float32 or bfloat16, low_precision, the result and "
      "what it raises as adamw_.");
}

}  // namespace zeromuon::bindings
