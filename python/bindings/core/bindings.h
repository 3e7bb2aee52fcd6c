// One function per part of the core; module.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace zeromuon::bindings {

void bind_coefficients(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_tasks(pybind11::module_& m);
void bind_executor(pybind11::module_& m);
void bind_allocations(pybind11::module_& m);

}  // namespace zeromuon::bindings
