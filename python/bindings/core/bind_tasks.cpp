#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/base/check.h"
#include "python/bindings/core/bindings.h"
#include "python/bindings/core/names.h"
#include "zero3/step/step_types.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using zero3::AdamWTask;
using zero3::MuonTask;
using OptionalTensor = std::optional<at::Tensor>;

at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor ? *tensor : at::Tensor(); }

ops::Decay decay_of(bool decoupled, bool cautious) {
  require(decoupled || !cautious,
          "cautious_wd: got True where the weight decay is coupled (L2 regularisation), expected "
          "False");
  if (!decoupled) return ops::Decay::kCoupled;
  return cautious ? ops::Decay::kCautious : ops::Decay::kDecoupled;
}

MuonTask make_muon(int sub_group, const at::Tensor& weight, const at::Tensor& gradient,
                   const at::Tensor& exp_avg, const OptionalTensor& low_precision, double lr,
                   double weight_decay, bool cautious_wd, double momentum,
                   ops::MomentumKind momentum_kind, bool nesterov, float gradient_scale) {
  return {sub_group,
          {weight, gradient, exp_avg, or_undefined(low_precision)},
          {lr, weight_decay, momentum, momentum_kind, nesterov, gradient_scale,
           decay_of(true, cautious_wd)}};
}

AdamWTask make_adamw(int sub_group, const at::Tensor& weight, const at::Tensor& gradient,
                     const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                     const OptionalTensor& low_precision, double lr, double weight_decay,
                     bool cautious_wd, std::pair<double, double> betas, double eps, int64_t step,
                     bool decoupled, float gradient_scale) {
  return {sub_group,
          {weight, gradient, exp_avg, exp_avg_sq, or_undefined(low_precision)},
          {lr, weight_decay, betas.first, betas.second, eps, step, decay_of(decoupled, cautious_wd),
           gradient_scale}};
}

}  // namespace

// Hyper-parameters carry the names of the options: python/zeromuon/optimizer/options.py.
void bind_tasks(py::module_& m) {
  py::class_<MuonTask>(m, "MuonTask")
      .def(py::init(&make_muon), py::arg("sub_group"), py::arg("weight"), py::arg("gradient"),
           py::arg("exp_avg"), py::arg("low_precision") = py::none(), py::kw_only(), py::arg("lr"),
           py::arg("weight_decay"), py::arg("cautious_wd"), py::arg("momentum"),
           py::arg("momentum_kind"), py::arg("nesterov"), py::arg("gradient_scale") = 1.0f);
  py::class_<AdamWTask>(m, "AdamWTask")
      .def(py::init(&make_adamw), py::arg("sub_group"), py::arg("weight"), py::arg("gradient"),
           py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("low_precision") = py::none(),
           py::kw_only(), py::arg("lr"), py::arg("weight_decay"), py::arg("cautious_wd"),
           py::arg("betas"), py::arg("eps"), py::arg("step"), py::arg("decoupled") = true,
           py::arg("gradient_scale") = 1.0f);
}

}  // namespace zeromuon::bindings
