#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "zero3/step/step_types.h"

namespace zeromuon::bindings {

// Each a dict: lane, stage, sub_group, bucket, begin_ns, end_ns.
pybind11::list trace_rows(const std::vector<zero3::TraceEvent>& events);

}  // namespace zeromuon::bindings
