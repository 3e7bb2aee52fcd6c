#include "csrc/formats/format_error.h"
#include "python/bindings/ckpt/bindings.h"

namespace py = pybind11;

namespace {

// ValueError for what a user can get wrong, with `finding` for what is wrong with a file.
void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const zeromuon::formats::FormatError& e) {
    const zeromuon::formats::Finding& f = e.finding();
    const py::object raised = py::module_::import("zeromuon._ckpt").attr("FormatError")(e.what());
    raised.attr("file") = f.file;
    raised.attr("offset") = f.offset >= 0 ? py::object(py::int_(f.offset)) : py::none();
    raised.attr("expected") = f.expected;
    raised.attr("got") = f.got;
    raised.attr("remedy") = f.remedy;
    PyErr_SetObject(py::type::of(raised).ptr(), raised.ptr());
  } catch (const zeromuon::ValueError& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const zeromuon::InternalError& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
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
