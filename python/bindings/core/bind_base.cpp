#include "csrc/base/check.h"
#include "python/bindings/core/bindings.h"
#include "python/bindings/lab/allocation_counter.h"
#include "zero3/step/step_executor.h"

namespace py = pybind11;

namespace zeromuon::bindings {

void bind_base(py::module_& m) {
  py::register_exception<ValueError>(m, "CoreValueError", PyExc_ValueError);
  py::register_exception<InternalError>(m, "InternalError", PyExc_RuntimeError);
  py::register_exception<zero3::StepError>(m, "StepError", PyExc_RuntimeError);

  m.def("count_allocations", &count_allocations,
        "Starts counting allocations in this process; for tests and measurements.");
  m.def(
      "allocation_count",
      [] {
        const AllocationCounts counts = allocation_counts();
        py::dict out;
        out["tensor_storage"] = counts.tensor_storage;
        out["large_buffers"] = counts.large_buffers;
        return out;
      },
      "Calls since count_allocations(): libtorch's CPU allocator, and operator new of this module "
      "with 4 KiB or more.");
#ifdef ZEROMUON_WITH_CUDA
  m.attr("built_with_cuda") = true;
#else
  m.attr("built_with_cuda") = false;
#endif
}

}  // namespace zeromuon::bindings
