// One function per part of the checkpoint tool; module.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "zero3/convert/run_options.h"

namespace zeromuon::bindings {

void bind_checkpoint(pybind11::module_& m);
void bind_verbs(pybind11::module_& m);

}  // namespace zeromuon::bindings
