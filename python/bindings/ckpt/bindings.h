// One function per part of the checkpoint tool; module.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/formats/format_error.h"

namespace zeromuon::bindings {

// Note [Bytes that are no UTF-8]
// Paths may be any bytes, and a message may quote any bytes of a file. On the way out a byte that
// is no UTF-8 becomes a lone surrogate, as os.fsdecode makes them; on the way in texts come as
// bytes (python/zeromuon/ckpt/arguments.py). Names of tensors are UTF-8: open_checkpoint() refuses
// others.
pybind11::str text(std::string_view bytes);
pybind11::list texts(const std::vector<std::string>& all);
pybind11::dict texts(const std::map<std::string, std::string>& all);

// What is wrong with a file: file, offset (None: the file as a whole), expected, got and remedy.
pybind11::dict fields_of(const formats::Finding& finding);

void bind_checkpoint(pybind11::module_& m);
void bind_verbs(pybind11::module_& m);

}  // namespace zeromuon::bindings
