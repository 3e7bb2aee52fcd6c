#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <memory>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/products.h"
#include "csrc/ops/newton_schulz/time_product.h"
#include "python/bindings/core/names.h"
#include "python/bindings/lab/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

ops::ProductKind parse_kind(const std::string& name) {
  static constexpr const char* kNames[] = {"gram", "square", "apply"};
  return static_cast<ops::ProductKind>(index_of(kNames, name, "kind of product"));
}

ops::ProductBackend parse_backend(const std::string& name) {
  static constexpr const char* kNames[] = {"blas", "onednn"};
  return static_cast<ops::ProductBackend>(index_of(kNames, name, "backend of a product"));
}

void check_square(const at::Tensor& t, int64_t n) {
  require(t.dim() == 2 && n > 0 && t.size(0) == n && t.size(1) == n && t.stride(1) == 1 &&
              t.stride(0) >= n && t.scalar_type() == at::kFloat && t.device().is_cpu(),
          "multiply_: expected square float32 CPU tensors of one size, elements of a row next to "
          "each other, got ",
          t.scalar_type(), " of ", t.sizes(), " with strides ", t.strides());
}

ops::Matrix matrix_of(const at::Tensor& t) {
  const int64_t n = t.size(0);
  return {t.mutable_data_ptr<float>(), nullptr, n, n, t.stride(0), 1};
}

// out = a b, all [n, n] fp32, rows of any stride, by one backend in tiles on all threads: what
// Newton-Schulz could reach at best.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b,
              const std::string& backend) {
  const int64_t n = out.dim() == 2 ? out.size(0) : 0;
  for (const at::Tensor& t : {out, a, b}) check_square(t, n);
  require(!out.is_alias_of(a) && !out.is_alias_of(b),
          "multiply_: out must not share memory with a or b");
  const int tile = static_cast<int>(std::max<int64_t>(256, n / 4));
  const ops::ProductPlan plan =
      ops::cut_product({"trial", DType::kFloat32, ops::ProductKind::kApply, n,
                        parse_backend(backend), tile, tile, false, 0},
                       n, n, false);
  const py::gil_scoped_release released;
  ops::Product product{plan, {matrix_of(a), false, false}, {matrix_of(b), false, false}};
  product.out = matrix_of(out);
  static const std::unique_ptr<ops::Products> products = ops::make_host_products();
  products->multiply(product);
}

ops::TunedProduct make_cut(const std::string& kind, int64_t short_side, DType dtype,
                           const std::string& backend, int tile, int leaf, bool transposed) {
  for (const int64_t size : {short_side, int64_t{tile}, int64_t{leaf}}) {
    require(size > 0, "TunedProduct: expected short side, tile and leaf of at least 1, got ", size);
  }
  require(!transposed || parse_kind(kind) == ops::ProductKind::kSquare,
          "TunedProduct: transposed is for kind square only, got ", kind);
  return {"trial", dtype, parse_kind(kind), short_side, parse_backend(backend),
          tile,    leaf,  transposed,       0};
}

py::tuple time_product(const ops::TunedProduct& cut, int64_t long_side, int repetitions) {
  require(long_side > 0 && repetitions > 0,
          "time_product: expected a long side and repetitions of at least 1, got ", long_side,
          " and ", repetitions);
  ops::ProductTiming timing;
  {
    const py::gil_scoped_release released;
    timing = ops::time_product(cut, long_side, repetitions);
  }
  return py::make_tuple(timing.seconds, timing.flops);
}

}  // namespace

void bind_products(py::module_& m) {
  py::class_<ops::TunedProduct>(m, "TunedProduct", "One way of cutting a product into tiles.")
      .def(py::init(&make_cut), py::kw_only(), py::arg("kind"), py::arg("short_side"),
           py::arg("dtype"), py::arg("backend"), py::arg("tile"), py::arg("leaf"),
           py::arg("transposed"));
  m.def("time_product", &time_product, py::arg("cut"), py::arg("long_side"), py::arg("repetitions"),
        "Processor seconds of one product on one thread, and its operations: what the tuned table "
        "is made from.");
  m.def("multiply_", &multiply, py::arg("out"), py::arg("a"), py::arg("b"), py::arg("backend"),
        "out = a b of square float32 CPU tensors, by \"blas\" or \"onednn\", on all threads.");
}

}  // namespace zeromuon::bindings
