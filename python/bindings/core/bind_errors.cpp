#include "csrc/base/check.h"
#include "python/bindings/core/bindings.h"
#include "zero3/step/step_types.h"

namespace py = pybind11;

namespace zeromuon::bindings {

// pybind11 keeps one list of translators for all modules of the process: what _lab throws becomes
// these types, too.
void bind_errors(py::module_& m) {
  py::register_exception<ValueError>(m, "CoreValueError", PyExc_ValueError);
  py::register_exception<InternalError>(m, "InternalError", PyExc_RuntimeError);
  py::register_exception<zero3::StepError>(m, "StepError", PyExc_RuntimeError);
}

}  // namespace zeromuon::bindings
