#include "python/bindings/ckpt/bindings.h"
#include "zero3/convert/checkpoint.h"
#include "zero3/convert/verbs.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using convert::Checkpoint;
using convert::NamedTensor;
using convert::TensorSource;

py::tuple shape_of(const TensorSource& source) { return py::cast(source.shape).cast<py::tuple>(); }

py::dict as_dict(const NamedTensor& tensor) {
  py::dict out, states;
  for (const auto& [part, source] : tensor.states) states[text(part)] = name_of(source.type);
  out["name"] = text(tensor.name);
  out["role"] = name_of(tensor.role);
  out["dtype"] = name_of(tensor.value.type);
  out["shape"] = shape_of(tensor.value);
  out["bytes"] = tensor.value.bytes();
  out["states"] = states;
  out["sub_group"] = tensor.sub_group >= 0 ? py::object(py::int_(tensor.sub_group)) : py::none();
  return out;
}

py::dict inspect(const std::string& path, const std::string& tag) {
  Checkpoint checkpoint;
  {
    const py::gil_scoped_release released;
    checkpoint = convert::open_checkpoint(path, tag);
  }
  py::list tensors;
  for (const NamedTensor& tensor : checkpoint.tensors) tensors.append(as_dict(tensor));
  py::dict out;
  out["kind"] = name_of(checkpoint.kind);
  out["path"] = text(checkpoint.path);
  out["folder"] = text(checkpoint.folder);
  out["tag"] = text(checkpoint.tag);
  out["world_size"] = checkpoint.world_size;
  out["optimizer"] = text(checkpoint.optimizer_name());
  out["momentum_kind"] = text(checkpoint.momentum_kind);
  out["facts"] = texts(convert::texts_of(checkpoint.facts));
  out["tensors"] = tensors;
  out["aliases"] = texts(checkpoint.aliases);
  out["sub_groups"] = checkpoint.sub_groups.size();
  out["files"] = texts(checkpoint.files);
  out["warnings"] = texts(checkpoint.warnings);
  out["verbs"] = convert::verbs_of(checkpoint.kind);
  return out;
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  m.def(
      "inspect", &inspect, py::arg("path"), py::arg("tag") = "",
      "What a checkpoint holds, as a dict: kind, tag, world_size, optimizer, momentum_kind, facts, "
      "tensors (name, role, dtype, shape, bytes, states, sub_group), aliases, files, warnings, and "
      "the verbs that go with it. Raises FormatError (a ValueError).");
}

}  // namespace zeromuon::bindings
