#include <pybind11/stl.h>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/coefficients.h"
#include "python/bindings/core/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using namespace py::literals;

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
  return py::dict("coefficients"_a = triples, "safety"_a = set.safety,
                  "scale_rows"_a = set.scale_rows, "source"_a = set.source);
}

}  // namespace

void bind_coefficients(py::module_& m) {
  py::class_<ops::CoefficientSet>(m, "CoefficientSet", "The name of a set, or (a, b, c) triples.")
      .def(py::init(&parse_coefficients), py::arg("ns"))
      .def_readonly("name", &ops::CoefficientSet::name);
  m.def("coefficient_sets", &set_names, "Names of the Newton-Schulz coefficient sets.");
  m.def("coefficient_set", &describe_set, py::arg("name"),
        "Triples, safety, row scaling and source of one set.");
}

}  // namespace zeromuon::bindings
