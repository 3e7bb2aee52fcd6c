#include "csrc/base/check.h"
#include "python/bindings/core/bindings.h"
#include "zero3/step/step_types.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of zeromuon: what an optimizer step needs. Import torch first.";
  // pybind11 keeps one list of translators for all modules of the process: what _lab throws becomes
  // these types, too.
  py::register_exception<zeromuon::ValueError>(m, "CoreValueError", PyExc_ValueError);
  py::register_exception<zeromuon::InternalError>(m, "InternalError", PyExc_RuntimeError);
  py::register_exception<zeromuon::zero3::StepError>(m, "StepError", PyExc_RuntimeError);
  zeromuon::bindings::bind_coefficients(m);
  zeromuon::bindings::bind_plan(m);
  zeromuon::bindings::bind_tasks(m);
  zeromuon::bindings::bind_executor(m);
  zeromuon::bindings::bind_allocations(m);
}
