// One function per part of the laboratory; module.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace zeromuon::bindings {

void bind_elementwise(pybind11::module_& m);
void bind_newton_schulz(pybind11::module_& m);
void bind_products(pybind11::module_& m);
void bind_played(pybind11::module_& m);
void bind_executors(pybind11::module_& m);

}  // namespace zeromuon::bindings
