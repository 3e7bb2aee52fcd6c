#include <algorithm>
#include <set>

#include "zero3/convert/names.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

// The folder with zero/, which `latest_universal` may name.
fs::path universal_folder(const fs::path& path) {
  std::error_code ignored;
  if (is_universal(path)) return path;
  if (!fs::is_regular_file(path / "latest_universal", ignored)) return {};
  const std::string name = read_name(path / "latest_universal");
  if (!is_file_name(name)) return {};
  return is_universal(path / name) ? path / name : fs::path();
}

class UniversalReader {
 public:
  explicit UniversalReader(const fs::path& folder) : folder_(folder) {
    out_.kind = Kind::kUniversal;
    out_.folder = folder.string();
    out_.tag = tag_of_folder(out_.folder);
  }

  Checkpoint read() {
    open_model_files();
    read_model_files(out_);
    // A second look at the world that was: universal checkpoints have none.
    out_.facts.saved_on_ranks = static_cast<int64_t>(out_.model_files.size());
    read_parameters();
    const TorchFilePtr optimizer = open_torch_file(folder_ / "zero" / "optimizer_state.pt");
    out_.optim_files.push_back(optimizer);
    out_.files.push_back(optimizer->path());
    read_optimizer(out_,
                   {optimizer, optimizer->graph().get(optimizer->root(), "optimizer_state_dict")});
    check_states();
    drop_placeholders(out_);
    return std::move(out_);
  }

 private:
  void open_model_files() {
    for (int rank = 0;; ++rank) {
      const fs::path path = folder_ / model_file_name(rank);
      std::error_code ignored;
      if (!fs::exists(path, ignored)) break;
      out_.model_files.push_back(open_torch_file(path));
      out_.files.push_back(path.string());
    }
    if (out_.model_files.empty()) {
      refuse(folder_.string(), model_file_name(0), "none",
             "this is no universal checkpoint of ZeRO stage 3");
    }
  }

  void read_parameters() {
    for (NamedTensor& tensor : out_.tensors) {
      if (tensor.sub_group < 0) continue;
      if (tensor.sub_group >= static_cast<int>(out_.sub_groups.size())) {
        out_.sub_groups.resize(tensor.sub_group + 1);
      }
      out_.sub_groups[tensor.sub_group].tensors.push_back(
          static_cast<int>(&tensor - out_.tensors.data()));
      read_parameter(tensor);
    }
  }

  void read_parameter(NamedTensor& tensor) {
    if (!is_file_name(tensor.name)) {
      refuse(folder_.string(), "the name of a parameter that is a file name",
             "\"" + tensor.name + "\"", kDamaged);
    }
    const fs::path folder = folder_ / "zero" / tensor.name;
    for (const char* part : {"fp32", "exp_avg", "exp_avg_sq", "momentum_buffer"}) {
      const fs::path path = folder / (std::string(part) + ".pt");
      const bool weights = std::string(part) == "fp32";
      std::error_code ignored;
      if (!weights && !fs::exists(path, ignored)) continue;
      (weights ? tensor.value : tensor.states[part]) = read_part(path, tensor.value.shape);
    }
  }

  // What one parameter of a group has, all have; and an optimizer that was stepped has a momentum.
  void check_states() const {
    for (const SubGroup& group : out_.sub_groups) {
      std::set<std::string> parts;
      for (const int number : group.tensors) {
        for (const auto& [part, source] : out_.tensors[number].states) parts.insert(part);
      }
      const bool stepped = out_.optimizer != Optimizer::kNone &&
                           out_.optimizer != Optimizer::kOther &&
                           out_.facts.optimizer_step.value_or(0) > 0;
      if (stepped && !parts.contains("momentum_buffer")) parts.insert("exp_avg");
      for (const int number : group.tensors) check_states(out_.tensors[number], parts);
    }
  }

  void check_states(const NamedTensor& tensor, const std::set<std::string>& parts) const {
    for (const std::string& part : parts) {
      if (tensor.value.numel() == 0 || tensor.states.contains(part)) continue;
      refuse((folder_ / "zero" / tensor.name / (part + ".pt")).string(),
             "a state that the optimizer has", "none",
             "the file is missing: restore it, or use another checkpoint");
    }
  }

  TensorSource read_part(const fs::path& path, const std::vector<int64_t>& shape) {
    const TorchFilePtr file = open_torch_file(path);
    out_.files.push_back(path.string());
    NodeId node = file->root();
    if (file->graph().is_dict(node)) node = file->graph().get(node, "param");
    const auto stored = file->tensor(node);
    if (!stored || stored->numel() != numel_of(shape)) {
      refuse(path.string(), concat("a tensor of ", numel_of(shape), " elements"),
             stored ? concat(stored->numel()) : "none", kDamaged);
    }
    TensorSource out = source_of(*file, *stored);
    if (out.strides.empty()) out.shape = shape;
    file->file().park();
    return out;
  }

  fs::path folder_;
  Checkpoint out_;
};

}  // namespace

bool is_universal(const fs::path& folder) {
  std::error_code ignored;
  return fs::is_directory(folder / "zero", ignored);
}

bool looks_like_universal(const fs::path& folder) { return !universal_folder(folder).empty(); }

Checkpoint read_universal(const fs::path& path) {
  return UniversalReader(universal_folder(path)).read();
}

}  // namespace zeromuon::convert
