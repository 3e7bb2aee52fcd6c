#include "python/bindings/ckpt/bindings.h"
#include "zero3/convert/checkpoint.h"
#include "zero3/convert/seals.h"
#include "zero3/convert/verbs.h"

namespace py = pybind11;
using namespace py::literals;

namespace zeromuon::bindings {
namespace {

using convert::Checkpoint;
using convert::NamedTensor;
using convert::TensorSource;

py::dict as_dict(const NamedTensor& tensor) {
  py::dict states;
  for (const auto& [part, source] : tensor.states) states[text(part)] = name_of(source.type);
  const TensorSource& value = tensor.value;
  const py::object sub_group =
      tensor.sub_group >= 0 ? py::int_(tensor.sub_group) : py::object(py::none());
  return py::dict("name"_a = text(tensor.name), "role"_a = name_of(tensor.role),
                  "dtype"_a = name_of(value.type), "shape"_a = py::tuple(py::cast(value.shape)),
                  "bytes"_a = value.bytes(), "states"_a = states, "sub_group"_a = sub_group);
}

py::dict inspect(const std::string& path, const std::string& tag) {
  Checkpoint checkpoint;
  {
    const py::gil_scoped_release released;
    checkpoint = convert::open_checkpoint(path, tag);
  }
  py::list tensors;
  for (const NamedTensor& tensor : checkpoint.tensors) tensors.append(as_dict(tensor));
  return py::dict(
      "kind"_a = name_of(checkpoint.kind), "path"_a = text(checkpoint.path),
      "folder"_a = text(checkpoint.folder), "tag"_a = text(checkpoint.tag),
      "world_size"_a = checkpoint.world_size, "optimizer"_a = text(checkpoint.optimizer_name()),
      "momentum_kind"_a = text(checkpoint.momentum_kind),
      "facts"_a = texts(convert::texts_of(checkpoint.facts)), "tensors"_a = tensors,
      "aliases"_a = texts(checkpoint.aliases), "sub_groups"_a = checkpoint.sub_groups.size(),
      "files"_a = texts(checkpoint.files), "warnings"_a = texts(checkpoint.warnings),
      "verbs"_a = convert::verbs_of(checkpoint.kind));
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  m.def(
      "inspect", &inspect, py::arg("path"), py::arg("tag") = "",
      "What a checkpoint holds, as a dict: kind, tag, world_size, optimizer, momentum_kind, facts, "
      "tensors (name, role, dtype, shape, bytes, states, sub_group), aliases, files, warnings, and "
      "the verbs that go with it. Raises FormatError (a ValueError).");
  m.def("seal_of", &convert::seal_of, py::arg("path"),
        "By which a file of a checkpoint is known from any other of its name: its length, and the "
        "CRC-32 of its end. Raises FormatError (a ValueError).");
}

}  // namespace zeromuon::bindings
