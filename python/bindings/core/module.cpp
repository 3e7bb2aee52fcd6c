#include "python/bindings/core/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of zeromuon: what an optimizer step needs. Import torch first.";
  zeromuon::bindings::bind_errors(m);
  zeromuon::bindings::bind_coefficients(m);
  zeromuon::bindings::bind_plan(m);
  zeromuon::bindings::bind_tasks(m);
  zeromuon::bindings::bind_executor(m);
  zeromuon::bindings::bind_allocations(m);
}
