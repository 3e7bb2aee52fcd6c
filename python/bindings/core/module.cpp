#include "python/bindings/core/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of zeromuon. Import torch first.";
  zeromuon::bindings::bind_base(m);
  zeromuon::bindings::bind_elementwise(m);
  zeromuon::bindings::bind_ops(m);
  zeromuon::bindings::bind_played(m);
  zeromuon::bindings::bind_zero3(m);
}
