// One function per folder of the core; module.cpp lists them.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace zeromuon::bindings {

void bind_base(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_zero3(pybind11::module_& m);

}  // namespace zeromuon::bindings
