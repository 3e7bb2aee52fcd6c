#include <ATen/ops/empty.h>
#include <pybind11/stl.h>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/newton_schulz.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

ops::CoefficientSet parse_coefficients(const py::object& ns) {
  if (py::isinstance<py::str>(ns)) return ops::find_coefficient_set(ns.cast<std::string>());
  std::vector<ops::Triple> triples;
  for (const auto& [a, b, c] : ns.cast<std::vector<std::tuple<double, double, double>>>()) {
    triples.push_back({a, b, c});
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

at::Tensor newton_schulz(const at::Tensor& matrix, const py::object& ns, const std::string& form,
                         const std::string& backend) {
  require(matrix.dim() == 2 && matrix.scalar_type() == at::kFloat && matrix.device().is_cpu(),
          "newton_schulz: expected a 2-D float32 tensor on the CPU, got ", matrix.dim(), "-D ",
          matrix.scalar_type(), " on ", matrix.device());
  require(backend == "blas" || backend == "libtorch",
          "newton_schulz: expected backend blas or libtorch, got \"", backend, "\"");
  ops::TensorProducts tensor_products{at::Device(at::kCPU)};
  ops::Products& products =
      backend == "blas" ? ops::host_products() : static_cast<ops::Products&>(tensor_products);
  const ops::NewtonSchulz op(ops::plan_newton_schulz(matrix.size(0), matrix.size(1),
                                                     ops::parse_form(form), parse_coefficients(ns)),
                             products);
  const py::gil_scoped_release released;
  at::Tensor out = matrix.clone(at::MemoryFormat::Contiguous);
  const at::Tensor scratch = at::empty({op.plan().scratch_numel}, matrix.options());
  op.run(out.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>());
  return out;
}

}  // namespace

void bind_ops(py::module_& m) {
  py::class_<ops::CoefficientSet>(m, "CoefficientSet")
      .def(py::init(&parse_coefficients), py::arg("ns"))
      .def_readonly("name", &ops::CoefficientSet::name);
  m.def("coefficient_sets", &set_names, "Names of the Newton-Schulz coefficient sets.");
  m.def("coefficient_set", &describe_set, py::arg("name"),
        "Triples, safety, row scaling and source of one set.");
  m.def("newton_schulz", &newton_schulz, py::arg("matrix"), py::arg("ns") = "jordan",
        py::arg("form") = "auto", py::arg("backend") = "blas",
        "Orthogonalises a (rows, cols) float32 CPU tensor; returns a new one. Raises ValueError "
        "for other input.");
}

}  // namespace zeromuon::bindings
