#include "python/bindings/ckpt/bindings.h"

namespace py = pybind11;
using namespace py::literals;

namespace zeromuon::bindings {

py::str text(std::string_view bytes) {
  PyObject* made =
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape");
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(made);
}

py::list texts(const std::vector<std::string>& all) {
  py::list out;
  for (const std::string& one : all) out.append(text(one));
  return out;
}

py::dict texts(const std::map<std::string, std::string>& all) {
  py::dict out;
  for (const auto& [key, value] : all) out[text(key)] = text(value);
  return out;
}

py::dict fields_of(const formats::Finding& finding) {
  const py::object offset = finding.offset >= 0 ? py::int_(finding.offset) : py::object(py::none());
  return py::dict("file"_a = text(finding.file), "offset"_a = offset,
                  "expected"_a = text(finding.expected), "got"_a = text(finding.got),
                  "remedy"_a = text(finding.remedy));
}

}  // namespace zeromuon::bindings

namespace {

using zeromuon::bindings::text;

// ValueError for what a user can get wrong, with `finding` for what is wrong with a file.
void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const zeromuon::formats::FormatError& e) {
    const auto raised = py::module_::import("zeromuon._ckpt").attr("FormatError")(text(e.what()));
    for (const auto& [name, value] : zeromuon::bindings::fields_of(e.finding())) {
      py::setattr(raised, name, value);
    }
    PyErr_SetObject(py::type::of(raised).ptr(), raised.ptr());
  } catch (const zeromuon::ValueError& e) {
    PyErr_SetObject(PyExc_ValueError, text(e.what()).ptr());
  } catch (const zeromuon::InternalError& e) {
    PyErr_SetObject(PyExc_RuntimeError, text(e.what()).ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_ckpt, m) {
  m.doc() = "The checkpoint tool of zeromuon. Needs neither torch nor deepspeed.";
  py::exception<zeromuon::formats::FormatError>(m, "FormatError", PyExc_ValueError);
  py::register_local_exception_translator(&translate);
  zeromuon::bindings::bind_checkpoint(m);
  zeromuon::bindings::bind_verbs(m);
}
