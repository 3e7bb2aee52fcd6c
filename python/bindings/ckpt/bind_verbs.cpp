#include "python/bindings/ckpt/bindings.h"
#include "zero3/convert/verbs.h"

namespace py = pybind11;
using namespace py::literals;

namespace zeromuon::bindings {
namespace {

using convert::OutputReport;
using convert::Progress;
using convert::RunOptions;

// progress(bytes_done, bytes_total) is called about ten times a second; without it Ctrl-C still
// cancels. What it raises cancels the verb and comes out of it.
RunOptions run_options(const py::object& progress, int64_t max_memory, int threads,
                       bool force = false, bool resume = false) {
  RunOptions run{max_memory, threads, force, resume, {}};
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

// Without the GIL.
template <typename Report, typename Options>
Report report_of(Report (*verb)(const Options&), const Options& options) {
  const py::gil_scoped_release released;
  return verb(options);
}

py::dict as_dict(const formats::Finding& finding) {
  py::dict out = fields_of(finding);
  out["text"] = text(finding.text());
  return out;
}

py::dict as_dict(const OutputReport& r) {
  return py::dict("files"_a = texts(r.files), "bytes_written"_a = r.bytes_written,
                  "tensors"_a = r.tensors, "aliases"_a = texts(r.aliases),
                  "notes"_a = texts(r.notes), "kept_files"_a = r.kept_files);
}

py::dict as_dict(const convert::TensorHealth& health) {
  return py::dict("name"_a = text(health.name), "part"_a = text(health.part), "nan"_a = health.nan,
                  "infinite"_a = health.infinite, "norm"_a = health.norm);
}

py::dict as_dict(const convert::TensorDifference& d) {
  return py::dict("name"_a = text(d.name), "part"_a = text(d.part), "reason"_a = d.reason,
                  "in_a"_a = text(d.in_a), "in_b"_a = text(d.in_b), "different"_a = d.different,
                  "max_abs"_a = d.max_abs, "max_rel"_a = d.max_rel);
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
      {path, tag}, check_crc, run_options(progress, max_memory, threads)};
  const convert::VerifyReport report = report_of(convert::verify, options);
  return py::dict("ok"_a = report.problems.empty(), "problems"_a = as_dicts(report.problems),
                  "tensors"_a = as_dicts(report.tensors), "bytes_read"_a = report.bytes_read);
}

py::dict diff(const std::string& a, const std::string& b, const std::string& tag_a,
              const std::string& tag_b, bool states, const py::object& progress, int64_t max_memory,
              int threads) {
  const convert::DiffOptions options{
      {a, tag_a}, {b, tag_b}, states, run_options(progress, max_memory, threads)};
  const convert::DiffReport report = report_of(convert::diff, options);
  const bool same =
      report.only_in_a.empty() && report.only_in_b.empty() && report.differences.empty();
  return py::dict("same"_a = same, "only_in_a"_a = texts(report.only_in_a),
                  "only_in_b"_a = texts(report.only_in_b),
                  "differences"_a = as_dicts(report.differences), "compared"_a = report.compared,
                  "equal"_a = report.equal);
}

// Name, shape, and whether it is needed.
using Described = std::vector<std::tuple<std::string, std::vector<int64_t>, bool>>;

convert::DescribedModel described_model(const std::string& folder, Described tensors) {
  convert::DescribedModel model{folder, {}};
  for (auto& [name, shape, needed] : tensors) {
    model.tensors.push_back({std::move(name), std::move(shape), needed});
  }
  return model;
}

py::dict export_weights(const std::string& path, const std::string& output, const std::string& tag,
                        const std::string& format, const std::string& dtype,
                        std::vector<std::pair<std::string, std::string>> dtype_patterns,
                        std::vector<std::string> include, std::vector<std::string> exclude,
                        int64_t max_shard_bytes, const std::string& described_by,
                        Described described, const py::object& progress, int64_t max_memory,
                        int threads, bool force, bool resume) {
  const convert::ExportOptions options{{path, tag},
                                       output,
                                       format,
                                       dtype,
                                       std::move(dtype_patterns),
                                       std::move(include),
                                       std::move(exclude),
                                       max_shard_bytes,
                                       described_model(described_by, std::move(described)),
                                       run_options(progress, max_memory, threads, force, resume)};
  return as_dict(report_of(convert::export_weights, options));
}

py::dict reshard(const std::string& path, const std::string& output, int world_size,
                 const std::string& tag, int64_t sub_group_size, const std::string& new_tag,
                 const py::object& progress, int64_t max_memory, int threads, bool force,
                 bool resume) {
  const convert::ReshardOptions options{
      {path, tag},    output,  world_size,
      sub_group_size, new_tag, run_options(progress, max_memory, threads, force, resume)};
  return as_dict(report_of(convert::reshard, options));
}

py::dict universal(const std::string& path, const std::string& output, const std::string& tag,
                   const py::object& progress, int64_t max_memory, int threads, bool force,
                   bool resume) {
  const convert::UniversalOptions options{
      {path, tag}, output, run_options(progress, max_memory, threads, force, resume)};
  return as_dict(report_of(convert::universal, options));
}

py::dict convert_optimizer(const std::string& path, const std::string& output,
                           const std::string& to, const std::string& tag,
                           const std::string& momentum_kind,
                           std::map<std::string, std::string> roles,
                           std::map<std::string, double> numbers, const std::string& new_tag,
                           const std::string& described_by, Described described,
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
      described_model(described_by, std::move(described)),
      run_options(progress, max_memory, threads, force, resume)};
  return as_dict(report_of(convert::convert_optimizer, options));
}

}  // namespace

void bind_verbs(py::module_& m) {
  const auto named = py::kw_only();
  const auto output = "output"_a;
  const auto tag = "tag"_a = "", new_tag = "new_tag"_a = "";
  const auto progress = "progress"_a = py::none(), threads = "threads"_a = 0;
  const auto max_memory = "max_memory"_a = RunOptions{}.max_memory_bytes;
  const auto force = "force"_a = false, resume = "resume"_a = false;
  m.def("verify", &verify, "path"_a, named, tag, "check_crc"_a = true, progress, max_memory,
        threads);
  m.def("diff", &diff, "a"_a, "b"_a, named, "tag_a"_a = "", "tag_b"_a = "", "states"_a = true,
        progress, max_memory, threads);
  const std::vector<std::string> none;
  m.def("export_weights", &export_weights, "path"_a, output, named, tag, "format"_a = "safetensors",
        "dtype"_a = "", "dtype_patterns"_a = std::vector<std::pair<std::string, std::string>>{},
        "include"_a = none, "exclude"_a = none,
        "max_shard_bytes"_a = convert::ExportOptions{}.max_shard_bytes, "described_by"_a = "",
        "described"_a = Described{}, progress, max_memory, threads, force, resume);
  m.def("reshard", &reshard, "path"_a, output, "world_size"_a, named, tag, "sub_group_size"_a = 0,
        new_tag, progress, max_memory, threads, force, resume);
  m.def("universal", &universal, "path"_a, output, named, tag, progress, max_memory, threads, force,
        resume);
  m.def("convert_optimizer", &convert_optimizer, "path"_a, output, "to"_a, named, tag,
        "momentum_kind"_a = "", "roles"_a = std::map<std::string, std::string>{},
        "numbers"_a = std::map<std::string, double>{}, new_tag, "described_by"_a = "",
        "described"_a = Described{}, progress, max_memory, threads, force, resume);
}

}  // namespace zeromuon::bindings
