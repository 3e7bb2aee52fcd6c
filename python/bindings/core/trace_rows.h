#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "zero3/step/step_types.h"

namespace zeromuon::bindings {

inline pybind11::list trace_rows(const std::vector<zero3::TraceEvent>& events) {
  using namespace pybind11::literals;
  pybind11::list out;
  for (const zero3::TraceEvent& event : events) {
    out.append(pybind11::dict("lane"_a = name_of(event.lane), "stage"_a = event.stage,
                              "sub_group"_a = event.sub_group, "bucket"_a = event.bucket,
                              "begin_ns"_a = event.begin_ns, "end_ns"_a = event.end_ns));
  }
  return out;
}

}  // namespace zeromuon::bindings
