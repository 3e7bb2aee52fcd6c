#include <ATen/ops/empty.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/newton_schulz.h"
#include "csrc/ops/newton_schulz/tensor_products.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

ops::ProductTarget target_of(const std::string& backend) {
  ops::ProductTarget target = ops::this_cpu();
  if (backend == "auto") return target;
  if (backend == "libtorch") return ops::cuda_target();
  require(backend == "blas", "backend: expected auto, blas or libtorch, got \"", backend, "\"");
  target.onednn = false;
  return target;
}

// A planned Newton-Schulz on the CPU with its scratch. Thread: any, one after another.
class BoundNewtonSchulz {
 public:
  BoundNewtonSchulz(int64_t rows, int64_t cols, const ops::NewtonSchulzRequest& request,
                    const std::string& backend, int lanes)
      : lanes_(lanes),
        products_(backend == "libtorch" ? ops::make_tensor_products() : ops::make_host_products()),
        op_(ops::plan_newton_schulz(rows, cols, request, target_of(backend)), *products_) {
    require(lanes > 0, "lanes: expected at least 1, got ", lanes);
    scratch_ = at::empty({lanes * plan().scratch_numel}, at::kFloat);
  }

  const ops::NewtonSchulzPlan& plan() const { return op_.plan(); }
  double flops() const { return newton_schulz_flops(plan(), true); }

  void run(const std::vector<at::Tensor>& matrices) {
    std::vector<float*> pointers;
    const int64_t numel = plan().rows * plan().cols;
    for (const at::Tensor& matrix : matrices) {
      float* data = checked(matrix);
      for (const float* other : pointers) {
        require(data + numel <= other || other + numel <= data,
                "newton_schulz: expected tensors of their own, got two that share memory");
      }
      pointers.push_back(data);
    }
    const py::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    op_.run(pointers, scratch_.mutable_data_ptr<float>(), lanes_);
  }

 private:
  float* checked(const at::Tensor& matrix) const {
    require(matrix.dim() == 2 && matrix.size(0) == plan().rows && matrix.size(1) == plan().cols &&
                matrix.scalar_type() == at::kFloat && matrix.device().is_cpu() &&
                matrix.is_contiguous(),
            "newton_schulz: expected contiguous float32 CPU tensors of shape (", plan().rows, ", ",
            plan().cols, "), got ", matrix.sizes(), " of ", matrix.scalar_type(), " on ",
            matrix.device());
    return matrix.mutable_data_ptr<float>();
  }

  int lanes_;
  std::mutex mutex_;  // guards scratch_
  std::unique_ptr<ops::Products> products_;
  ops::NewtonSchulz op_;
  at::Tensor scratch_;
};

py::dict describe_plan(const BoundNewtonSchulz& op) {
  const ops::NewtonSchulzPlan& plan = op.plan();
  py::dict out;
  out["form"] = name_of(plan.form);
  out["dtype"] = name_of(plan.dtype);
  out["backends"] = std::vector<std::string>{
      name_of(plan.gram.backend), name_of(plan.square.backend), name_of(plan.apply.backend)};
  return out;
}

}  // namespace

void bind_newton_schulz(py::module_& m) {
  py::class_<BoundNewtonSchulz>(
      m, "NewtonSchulz",
      "A planned Newton-Schulz of (rows, cols) float32 CPU matrices. request: a "
      "_core.NewtonSchulzRequest; backend: auto, blas, or libtorch (whole products, as on a GPU); "
      "lanes: how many small matrices may be worked on at once. Raises ValueError otherwise.")
      .def(py::init<int64_t, int64_t, const ops::NewtonSchulzRequest&, const std::string&, int>(),
           py::arg("rows"), py::arg("cols"), py::arg("request"), py::arg("backend") = "auto",
           py::arg("lanes") = 1)
      .def("run_", &BoundNewtonSchulz::run, py::arg("matrices"),
           "Orthogonalises contiguous (rows, cols) float32 CPU tensors in place.")
      .def("describe", &describe_plan, "form, dtype, backends of the three products.")
      .def_property_readonly("flops", &BoundNewtonSchulz::flops,
                             "Operations of the tiles really computed.");
}

}  // namespace zeromuon::bindings
