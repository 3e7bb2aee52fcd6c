#include "python/bindings/core/allocation_counter.h"
#include "python/bindings/core/bindings.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

py::dict as_dict(const AllocationCounts& counts) {
  py::dict out;
  out["tensor_storage"] = counts.tensor_storage;
  out["large_buffers"] = counts.large_buffers;
  return out;
}

}  // namespace

void bind_allocations(py::module_& m) {
  m.def("count_allocations", &count_allocations,
        "Starts counting allocations in this process; for tests and measurements.");
  m.def(
      "allocation_count", [] { return as_dict(allocation_counts()); },
      "Calls since count_allocations(): libtorch's CPU allocator, and operator new of this module "
      "with 4 KiB or more.");
}

}  // namespace zeromuon::bindings
