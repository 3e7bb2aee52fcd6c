#include "python/bindings/core/trace_rows.h"

#include "offload/lane.h"

namespace py = pybind11;

namespace zeromuon::bindings {

py::list trace_rows(const std::vector<zero3::TraceEvent>& events) {
  py::list out;
  for (const zero3::TraceEvent& event : events) {
    py::dict row;
    row["lane"] = name_of(event.lane);
    row["stage"] = event.stage;
    row["sub_group"] = event.sub_group;
    row["bucket"] = event.bucket;
    row["begin_ns"] = event.begin_ns;
    row["end_ns"] = event.end_ns;
    out.append(row);
  }
  return out;
}

}  // namespace zeromuon::bindings
