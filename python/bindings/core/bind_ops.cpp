#include <ATen/ops/empty.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/newton_schulz.h"
#include "csrc/ops/newton_schulz/time_product.h"
#include "python/bindings/core/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

ops::CoefficientSet parse_coefficients(const py::object& ns) {
  if (py::isinstance<py::str>(ns)) return ops::find_coefficient_set(ns.cast<std::string>());
  std::vector<ops::Triple> triples;
  try {
    for (const auto& [a, b, c] : ns.cast<std::vector<std::tuple<double, double, double>>>()) {
      triples.push_back({a, b, c});
    }
  } catch (const py::cast_error&) {
    throw_value_error(
        concat("ns: expected the name of a coefficient set or a list of (a, b, c) triples, got ",
               py::repr(ns).cast<std::string>()));
  }
  return ops::custom_coefficient_set(std::move(triples));
}

std::vector<std::string> set_names() {
  std::vector<std::string> names;
  for (const ops::CoefficientSet& set : ops::coefficient_sets()) names.push_back(set.name);
  return names;
}

py::dict describe_set(const std::string& name) {
  const ops::CoefficientSet& set = ops::find_coefficient_set(name);
  std::vector<std::tuple<double, double, double>> triples;
  for (const ops::Triple& t : set.triples) triples.emplace_back(t.a, t.b, t.c);
  py::dict out;
  out["coefficients"] = triples;
  out["safety"] = set.safety;
  out["scale_rows"] = set.scale_rows;
  out["source"] = set.source;
  return out;
}

ops::ProductTarget parse_backend(const std::string& backend) {
  ops::ProductTarget target = ops::this_cpu();
  if (backend == "auto") return target;
  if (backend == "libtorch") return ops::cuda_target();
  require(backend == "blas", "backend: expected auto, blas or libtorch, got \"", backend, "\"");
  target.onednn = false;
  return target;
}

// A planned Newton-Schulz on the CPU with its scratch.
class BoundNewtonSchulz {
 public:
  BoundNewtonSchulz(int64_t rows, int64_t cols, const py::object& ns, const std::string& form,
                    const std::string& dtype, const std::string& backend, int lanes)
      : lanes_(lanes),
        products_(backend == "libtorch" ? ops::make_tensor_products(at::kCPU)
                                        : ops::make_host_products()),
        op_(ops::plan_newton_schulz(rows, cols,
                                    {ops::parse_form(form), ops::parse_newton_schulz_dtype(dtype),
                                     parse_coefficients(ns)},
                                    parse_backend(backend)),
            *products_) {
    require(lanes > 0, "lanes: expected at least 1, got ", lanes);
    scratch_ = at::empty({lanes * plan().scratch_numel}, at::kFloat);
  }

  const ops::NewtonSchulzPlan& plan() const { return op_.plan(); }

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

at::Tensor newton_schulz(const at::Tensor& matrix, const py::object& ns, const std::string& form,
                         const std::string& dtype, const std::string& backend) {
  require(matrix.dim() == 2 && matrix.scalar_type() == at::kFloat && matrix.device().is_cpu(),
          "newton_schulz: expected a 2-D float32 tensor on the CPU, got ", matrix.dim(), "-D ",
          matrix.scalar_type(), " on ", matrix.device());
  BoundNewtonSchulz op(matrix.size(0), matrix.size(1), ns, form, dtype, backend, 1);
  at::Tensor out = matrix.clone(at::MemoryFormat::Contiguous);
  op.run({out});
  return out;
}

py::dict describe_plan(const BoundNewtonSchulz& op) {
  const ops::NewtonSchulzPlan& plan = op.plan();
  py::dict out;
  out["form"] = name_of(plan.form);
  out["dtype"] = name_of(plan.dtype);
  out["arithmetic"] = plan.arithmetic();
  out["backends"] = std::vector<std::string>{
      name_of(plan.gram.backend), name_of(plan.square.backend), name_of(plan.apply.backend)};
  out["expected_seconds"] = plan.seconds;
  out["scratch_bytes"] = 4 * plan.scratch_numel;
  return out;
}

// out = a b, all [n, n] fp32, rows of any stride, by one backend in tiles on all threads: what
// Newton-Schulz could reach at best.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
              const std::string& backend) {
  const int64_t n = out.dim() == 2 ? out.size(0) : 0;
  require(!out.is_alias_of(a) && !out.is_alias_of(b),
          "multiply_: out must not share memory with a "
          "or b");
  for (const at::Tensor& t : {out, a, b}) {
    require(t.dim() == 2 && n > 0 && t.size(0) == n && t.size(1) == n && t.stride(1) == 1 &&
                t.stride(0) >= n && t.scalar_type() == at::kFloat && t.device().is_cpu(),
            "multiply_: expected square float32 CPU tensors of one size, elements of a row next to "
            "each other, got ",
            t.scalar_type(), " of ", t.sizes(), " with strides ", t.strides());
  }
  require(backend == "blas" || backend == "onednn", "multiply_: expected blas or onednn, got \"",
          backend, "\"");
  const int tile = static_cast<int>(std::max<int64_t>(256, n / 4));
  const ops::TunedProduct row{
      "trial",
      DType::kFloat32,
      ops::ProductKind::kApply,
      n,
      backend == "blas" ? ops::ProductBackend::kBlas : ops::ProductBackend::kOneDnn,
      tile,
      tile,
      false,
      0};
  const ops::ProductPlan plan = ops::cut_product(row, n, n, false);
  const auto matrix = [n](const at::Tensor& t) {
    return ops::Matrix{t.mutable_data_ptr<float>(), nullptr, n, n, t.stride(0), 1};
  };
  const py::gil_scoped_release released;
  ops::Product product{plan, {matrix(a), false, false}, {matrix(b), false, false}};
  product.out = matrix(out);
  static const std::unique_ptr<ops::Products> products = ops::make_host_products();
  products->multiply(product);
}

// One way of cutting a product, timed.
py::tuple time_product(const std::string& kind, int64_t short_side, int64_t long_side,
                       const std::string& dtype, const std::string& backend, int tile, int leaf,
                       bool transposed, int repetitions) {
  static constexpr const char* kKinds[] = {"gram", "square", "apply"};
  static constexpr const char* kDTypes[] = {"float32", "bfloat16"};
  static constexpr const char* kBackends[] = {"blas", "onednn"};
  const auto of_kind = static_cast<ops::ProductKind>(index_of(kKinds, kind, "time_product: kind"));
  for (const int64_t size :
       {short_side, long_side, int64_t{tile}, int64_t{leaf}, int64_t{repetitions}}) {
    require(size > 0,
            "time_product: expected sides, tile, leaf and repetitions of at least 1, got ", size);
  }
  require(!transposed || of_kind == ops::ProductKind::kSquare,
          "time_product: transposed is for kind square only, got ", kind);
  const ops::TunedProduct row{
      "trial",
      index_of(kDTypes, dtype, "time_product: dtype") == 0 ? DType::kFloat32 : DType::kBFloat16,
      of_kind,
      short_side,
      static_cast<ops::ProductBackend>(index_of(kBackends, backend, "time_product: backend")),
      tile,
      leaf,
      transposed,
      0};
  const py::gil_scoped_release released;
  const ops::ProductTiming timing = ops::time_product(row, long_side, repetitions);
  const py::gil_scoped_acquire acquired;
  return py::make_tuple(timing.seconds, timing.flops);
}

}  // namespace

void bind_ops(py::module_& m) {
  py::class_<ops::CoefficientSet>(m, "CoefficientSet")
      .def(py::init(&parse_coefficients), py::arg("ns"))
      .def_readonly("name", &ops::CoefficientSet::name);
  m.def("coefficient_sets", &set_names, "Names of the Newton-Schulz coefficient sets.");
  m.def("coefficient_set", &describe_set, py::arg("name"),
        "Triples, safety, row scaling and source of one set.");
  py::class_<BoundNewtonSchulz>(
      m, "NewtonSchulz",
      "A planned Newton-Schulz of (rows, cols) float32 CPU matrices. form, dtype: as the options "
      "ns_form and ns_dtype; backend: auto, blas, or libtorch (whole products, as on a GPU); "
      "lanes: "
      "how many small matrices may be worked on at once. Raises ValueError for other values.")
      .def(py::init<int64_t, int64_t, const py::object&, const std::string&, const std::string&,
                    const std::string&, int>(),
           py::arg("rows"), py::arg("cols"), py::arg("ns") = "jordan", py::arg("form") = "auto",
           py::arg("dtype") = "auto", py::arg("backend") = "auto", py::arg("lanes") = 1)
      .def("run_", &BoundNewtonSchulz::run, py::arg("matrices"),
           "Orthogonalises contiguous (rows, cols) float32 CPU tensors in place.")
      .def("describe", &describe_plan,
           "form, dtype, arithmetic, backends of the three products, expected seconds on one core, "
           "bytes of scratch.")
      .def_property_readonly(
          "form", [](const BoundNewtonSchulz& self) { return name_of(self.plan().form); })
      .def_property_readonly(
          "flops",
          [](const BoundNewtonSchulz& self) { return newton_schulz_flops(self.plan(), true); },
          "Operations of the tiles really computed.");
  m.def("multiply_", &multiply, py::arg("out"), py::arg("a"), py::arg("b"), py::arg("backend"),
        "out = a b of square float32 CPU tensors, by \"blas\" or \"onednn\", on all threads.");
  m.def("time_product", &time_product, py::arg("kind"), py::arg("short_side"), py::arg("long_side"),
        py::kw_only(), py::arg("dtype"), py::arg("backend"), py::arg("tile"), py::arg("leaf"),
        py::arg("transposed") = false, py::arg("repetitions") = 3,
        "Processor seconds of one product on one thread, and its operations: what the tuned table "
        "is made from.");
  m.def(
      "product_target", [] { return ops::this_cpu().name(); },
      "The kind of machine whose rows of the tuned table are used here.");
  m.def("newton_schulz", &newton_schulz, py::arg("matrix"), py::arg("ns") = "jordan",
        py::arg("form") = "auto", py::arg("dtype") = "auto", py::arg("backend") = "auto",
        "Orthogonalises a (rows, cols) float32 CPU tensor; returns a new one. Raises ValueError "
        "for other input.");
}

}  // namespace zeromuon::bindings
