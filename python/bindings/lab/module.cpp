#include "python/bindings/lab/bindings.h"

PYBIND11_MODULE(_lab, m) {
  m.doc() =
      "What zeromuon bench and the tests use beside _core: single kernels and products, played "
      "steps, a fake device. Import torch first.";
  // The plans and executors that functions here take and return, and what is raised, are _core's.
  pybind11::module_::import("zeromuon._core");
#ifdef ZEROMUON_WITH_CUDA
  m.attr("built_with_cuda") = true;
#else
  m.attr("built_with_cuda") = false;
#endif
  zeromuon::bindings::bind_elementwise(m);
  zeromuon::bindings::bind_newton_schulz(m);
  zeromuon::bindings::bind_products(m);
  zeromuon::bindings::bind_played(m);
  zeromuon::bindings::bind_executors(m);
}
