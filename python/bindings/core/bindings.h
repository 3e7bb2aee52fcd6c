// One function per folder of the core; module.cpp lists them.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "zero3/step/step_types.h"

namespace zeromuon::bindings {

void bind_base(pybind11::module_& m);
void bind_elementwise(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_played(pybind11::module_& m);
void bind_zero3(pybind11::module_& m);

// Each a dict: lane, stage, sub_group, bucket, begin_ns, end_ns.
pybind11::list trace_rows(const std::vector<zero3::TraceEvent>& events);

}  // namespace zeromuon::bindings
