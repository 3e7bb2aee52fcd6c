#include "python/bindings/ckpt/bindings.h"
#include "zero3/convert/verbs.h"

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

using convert::OutputReport;
using convert::Progress;
using convert::RunOptions;

// progress(bytes_done, bytes_total) is called about ten times a second; without it Ctrl-C still
// cancels. What it raises cancels the verb and comes out of it.
RunOptions run_options(const py::object& progress, int64_t max_memory, int threads, bool force,
                       bool resume) {
  RunOptions run;
  run.max_memory_bytes = max_memory;
  run.threads = threads;
  run.force = force;
  run.resume = resume;
  // A plain pointer: the verb runs inside the call that holds the object.
  PyObject* callback = progress.is_none() ? nullptr : progress.ptr();
  run.progress = [callback](const Progress& p) {
    const py::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (callback == nullptr) return;
    const auto borrowed = py::reinterpret_borrow<py::object>(callback);
    borrowed(p.bytes_done, p.bytes_total);
  };
  return run;
}

template <typename Verb>
auto without_gil(const Verb& verb) {
  const py::gil_scoped_release released;
  return verb();
}

py::dict as_dict(const formats::Finding& finding) {
  py::dict out;
  out["file"] = text(finding.file);
  out["offset"] = finding.offset >= 0 ? py::object(py::int_(finding.offset)) : py::none();
  out["expected"] = text(finding.expected);
  out["got"] = text(finding.got);
  out["remedy"] = text(finding.remedy);
  out["text"] = text(finding.text());
  return out;
}

py::dict as_dict(const OutputReport& report) {
  py::dict out;
  out["files"] = texts(report.files);
  out["bytes_written"] = report.bytes_written;
  out["tensors"] = report.tensors;
  out["aliases"] = texts(report.aliases);
  out["notes"] = texts(report.notes);
  out["kept_files"] = report.kept_files;
  return out;
}

py::dict as_dict(const convert::TensorHealth& health) {
  py::dict out;
  out["name"] = text(health.name);
  out["part"] = text(health.part);
  out["nan"] = health.nan;
  out["infinite"] = health.infinite;
  out["norm"] = health.norm;
  return out;
}

py::dict as_dict(const convert::TensorDifference& d) {
  py::dict out;
  out["name"] = text(d.name);
  out["part"] = text(d.part);
  out["reason"] = d.reason;
  out["in_a"] = text(d.in_a);
  out["in_b"] = text(d.in_b);
  out["different"] = d.different;
  out["max_abs"] = d.max_abs;
  out["max_rel"] = d.max_rel;
  return out;
}

template <typename Item>
py::list as_dicts(const std::vector<Item>& items) {
  py::list out;
  for (const Item& item : items) out.append(as_dict(item));
  return out;
}

py::dict verify(const std::string& path, const std::string& tag, bool check_crc,
                const py::object& progress, int64_t max_memory, int threads) {
  const convert::VerifyOptions options{
      {path, tag}, check_crc, run_options(progress, max_memory, threads, false, false)};
  const convert::VerifyReport report = without_gil([&] { return convert::verify(options); });
  py::dict out;
  out["ok"] = report.problems.empty();
  out["problems"] = as_dicts(report.problems);
  out["tensors"] = as_dicts(report.tensors);
  out["bytes_read"] = report.bytes_read;
  return out;
}

py::dict diff(const std::string& a, const std::string& b, const std::string& tag_a,
              const std::string& tag_b, bool states, const py::object& progress, int64_t max_memory,
              int threads) {
  const convert::DiffOptions options{
      {a, tag_a}, {b, tag_b}, states, run_options(progress, max_memory, threads, false, false)};
  const convert::DiffReport report = without_gil([&] { return convert::diff(options); });
  py::dict out;
  out["same"] = report.only_in_a.empty() && report.only_in_b.empty() && report.differences.empty();
  out["only_in_a"] = texts(report.only_in_a);
  out["only_in_b"] = texts(report.only_in_b);
  out["differences"] = as_dicts(report.differences);
  out["compared"] = report.compared;
  out["equal"] = report.equal;
  return out;
}

py::dict export_weights(const std::string& path, const std::string& output, const std::string& tag,
                        const std::string& format, const std::string& dtype,
                        std::vector<std::pair<std::string, std::string>> dtype_patterns,
                        std::vector<std::string> include, std::vector<std::string> exclude,
                        int64_t max_shard_bytes, const py::object& progress, int64_t max_memory,
                        int threads, bool force, bool resume) {
  const convert::ExportOptions options{{path, tag},
                                       output,
                                       format,
                                       dtype,
                                       std::move(dtype_patterns),
                                       std::move(include),
                                       std::move(exclude),
                                       max_shard_bytes,
                                       run_options(progress, max_memory, threads, force, resume)};
  return as_dict(without_gil([&] { return convert::export_weights(options); }));
}

py::dict reshard(const std::string& path, const std::string& output, int world_size,
                 const std::string& tag, int64_t sub_group_size, const std::string& new_tag,
                 const py::object& progress, int64_t max_memory, int threads, bool force,
                 bool resume) {
  const convert::ReshardOptions options{
      {path, tag},    output,  world_size,
      sub_group_size, new_tag, run_options(progress, max_memory, threads, force, resume)};
  return as_dict(without_gil([&] { return convert::reshard(options); }));
}

py::dict universal(const std::string& path, const std::string& output, const std::string& tag,
                   const py::object& progress, int64_t max_memory, int threads, bool force,
                   bool resume) {
  const convert::UniversalOptions options{
      {path, tag}, output, run_options(progress, max_memory, threads, force, resume)};
  return as_dict(without_gil([&] { return convert::universal(options); }));
}

py::dict convert_optimizer(const std::string& path, const std::string& output,
                           const std::string& to, const std::string& tag,
                           const std::string& momentum_kind,
                           std::map<std::string, std::string> roles,
                           std::map<std::string, double> numbers, const std::string& new_tag,
                           const py::object& progress, int64_t max_memory, int threads, bool force,
                           bool resume) {
  const convert::ConvertOptimizerOptions options{
      {path, tag},
      output,
      to,
      momentum_kind,
      std::move(roles),
      std::move(numbers),
      new_tag,
      run_options(progress, max_memory, threads, force, resume)};
  return as_dict(without_gil([&] { return convert::convert_optimizer(options); }));
}

const int64_t kDefaultMemory = RunOptions{}.max_memory_bytes;

}  // namespace

void bind_verbs(py::module_& m) {
  const auto none = py::none();
  m.def("verify", &verify, py::arg("path"), py::kw_only(), py::arg("tag") = "",
        py::arg("check_crc") = true, py::arg("progress") = none,
        py::arg("max_memory") = kDefaultMemory, py::arg("threads") = 0);
  m.def("diff", &diff, py::arg("a"), py::arg("b"), py::kw_only(), py::arg("tag_a") = "",
        py::arg("tag_b") = "", py::arg("states") = true, py::arg("progress") = none,
        py::arg("max_memory") = kDefaultMemory, py::arg("threads") = 0);
  m.def("export_weights", &export_weights, py::arg("path"), py::arg("output"), py::kw_only(),
        py::arg("tag") = "", py::arg("format") = "safetensors", py::arg("dtype") = "",
        py::arg("dtype_patterns") = std::vector<std::pair<std::string, std::string>>{},
        py::arg("include") = std::vector<std::string>{},
        py::arg("exclude") = std::vector<std::string>{},
        py::arg("max_shard_bytes") = convert::ExportOptions{}.max_shard_bytes,
        py::arg("progress") = none, py::arg("max_memory") = kDefaultMemory, py::arg("threads") = 0,
        py::arg("force") = false, py::arg("resume") = false);
  m.def("reshard", &reshard, py::arg("path"), py::arg("output"), py::arg("world_size"),
        py::kw_only(), py::arg("tag") = "", py::arg("sub_group_size") = 0, py::arg("new_tag") = "",
        py::arg("progress") = none, py::arg("max_memory") = kDefaultMemory, py::arg("threads") = 0,
        py::arg("force") = false, py::arg("resume") = false);
  m.def("universal", &universal, py::arg("path"), py::arg("output"), py::kw_only(),
        py::arg("tag") = "", py::arg("progress") = none, py::arg("max_memory") = kDefaultMemory,
        py::arg("threads") = 0, py::arg("force") = false, py::arg("resume") = false);
  m.def("convert_optimizer", &convert_optimizer, py::arg("path"), py::arg("output"), py::arg("to"),
        py::kw_only(), py::arg("tag") = "", py::arg("momentum_kind") = "",
        py::arg("roles") = std::map<std::string, std::string>{},
        py::arg("numbers") = std::map<std::string, double>{}, py::arg("new_tag") = "",
        py::arg("progress") = none, py::arg("max_memory") = kDefaultMemory, py::arg("threads") = 0,
        py::arg("force") = false, py::arg("resume") = false);
}

}  // namespace zeromuon::bindings
