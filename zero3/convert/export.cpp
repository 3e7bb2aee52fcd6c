#include <algorithm>
#include <unordered_map>

#include "csrc/formats/output_file.h"
#include "zero3/convert/crcs.h"
#include "zero3/convert/elements.h"
#include "zero3/convert/names.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

using formats::PlannedTensor;

// One tensor of the output and where it comes from.
struct Exported {
  PlannedTensor planned;
  const NamedTensor* from = nullptr;
};

ElementType parse_dtype(const std::string& name) {
  ElementType type;
  require(formats::parse_element_type(name, type),
          "dtype: expected float32, bfloat16, float16 or float64, got \"", name, "\"");
  return type;
}

Block block_of_tensor(const Exported& exported) {
  Block block = block_of(exported.from->value, exported.planned.type);
  block.name = exported.planned.name;
  return block;
}

std::vector<PlannedTensor> planned(const std::vector<Exported>& tensors) {
  std::vector<PlannedTensor> out;
  for (const Exported& e : tensors) out.push_back(e.planned);
  return out;
}

class SafetensorsOutput : public OpenOutput {
 public:
  SafetensorsOutput(const std::string& path, const std::vector<Exported>& tensors,
                    const std::map<std::string, std::string>& metadata, bool replace)
      : writer_(path, planned(tensors), metadata, replace) {
    for (const Exported& e : tensors) blocks_.push_back(block_of_tensor(e));
  }

  const std::vector<Block>& blocks() const override { return blocks_; }
  void write(int block, uint64_t offset, const void* data, uint64_t bytes) override {
    writer_.write(block, offset, data, bytes);
  }
  void finish() override { writer_.finish(); }

 private:
  formats::SafetensorsWriter writer_;
  std::vector<Block> blocks_;
};

class Export {
 public:
  explicit Export(const ExportOptions& options)
      : options_(options), source_(open_checkpoint(options.source.path, options.source.tag)) {
    check_verb(source_, "export");
    require(options_.format == "safetensors" || options_.format == "torch",
            "format: expected safetensors or torch, got \"", options_.format, "\"");
    require(source_.kind != Kind::kSafetensors || options_.format == "safetensors",
            "format: a safetensors model is exported to safetensors with another dtype; got \"",
            options_.format, "\"");
    require(options_.max_shard_bytes >= 0, "max_shard_bytes: expected 0 or more, got ",
            options_.max_shard_bytes);
    require(!options_.output.empty(), "output: expected a path, got an empty text");
    check_ending();
    check_all_patterns();
    choose();
    check_model();
  }

  OutputReport run() {
    report_.tensors = static_cast<int64_t>(tensors_.size());
    report_.notes = source_.warnings;
    const bool torch = options_.format == "torch", one_file = is_torch_file();
    std::vector<PlannedOutput> outputs = torch ? plan_torch() : plan_safetensors();
    const std::string folder =
        torch ? fs::path(outputs[0].path).parent_path().string() : options_.output;
    const std::string index = (fs::path(folder) / "model.safetensors.index.json").string();
    const bool sharded = outputs.size() > 1;
    std::vector<std::string> names = paths_of(outputs);
    if (sharded) names.push_back(index);
    if (!one_file) refuse_others(names);
    Journal journal(one_file ? outputs[0].path : folder, identity(), source_, options_.run, names);
    check_source();
    if (!folder.empty()) formats::make_folders(folder, true);
    write_journalled(std::move(outputs), journal, options_.run, report_);
    if (sharded) {
      formats::write_safetensors_index(folder, planned(tensors_), shards(), true);
      report_.files.push_back(index);
    }
    if (!one_file) remove_others(names);
    journal.remove();
    return std::move(report_);
  }

 private:
  // A folder of such a name would be taken for a file.
  void check_ending() const {
    const std::string ending = fs::path(options_.output).extension().string();
    const bool torch = options_.format == "torch";
    const bool good = !matches_any({".safetensors", ".pt", ".pth", ".bin", ".ckpt"}, ending) ||
                      (torch && is_torch_file());
    require(good, options_.output, ": export writes a folder",
            torch ? ", or one file that ends in .pt, .pth or .bin" : "", ", and this name ends in ",
            ending, "; name a folder",
            torch                      ? ""
            : ending == ".safetensors" ? ", the weights in it are model.safetensors"
                                       : ", or say --format torch for one torch file");
  }

  void check_all_patterns() const {
    std::vector<std::string> of_dtypes;
    for (const auto& [pattern, dtype] : options_.dtype_patterns) of_dtypes.push_back(pattern);
    check_patterns(source_, "--include", options_.include);
    check_patterns(source_, "--exclude", options_.exclude);
    check_patterns(source_, "--dtype-for", of_dtypes);
  }

  bool wanted(const std::string& name) const {
    return (options_.include.empty() || matches_any(options_.include, name)) &&
           !matches_any(options_.exclude, name);
  }

  // The first pattern that fits; else one dtype for all that is trained or of unknown role.
  ElementType type_for(const NamedTensor& tensor) const {
    const ElementType own = tensor.value.type;
    for (const auto& [pattern, dtype] : options_.dtype_patterns) {
      const auto& names = names_.at(tensor.name);
      const bool fits = std::any_of(names.begin(), names.end(), [&, p = pattern](const auto& name) {
        return matches_any({p}, name);
      });
      if (!fits) continue;
      const ElementType type = parse_dtype(dtype);
      require(can_convert(own, type), "\"", tensor.name, "\": ", name_of(own),
              " is not converted to ", dtype, "; change the pattern \"", pattern, "\"");
      return type;
    }
    const bool keeps = tensor.role == TensorRole::kFrozen || tensor.role == TensorRole::kBuffer;
    if (options_.dtype.empty() || keeps || !is_floating(own)) return own;
    const ElementType type = parse_dtype(options_.dtype);
    return can_convert(own, type) ? type : own;
  }

  void choose() {
    if (!options_.dtype.empty()) {
      require(can_convert(ElementType::kFloat32, parse_dtype(options_.dtype)),
              "dtype: expected float32, bfloat16, float16 or float64, got \"", options_.dtype,
              "\"");
    }
    for (const NamedTensor& tensor : source_.tensors) names_[tensor.name] = {tensor.name};
    for (const auto& [alias, stored] : source_.aliases) names_[stored].push_back(alias);
    for (const NamedTensor& tensor : source_.tensors) {
      by_name_[tensor.name] = &tensor;
      if (!wanted(tensor.name)) continue;
      tensors_.push_back({{tensor.name, type_for(tensor), tensor.value.shape}, &tensor});
    }
    for (const auto& [alias, stored] : source_.aliases) add_alias(alias, stored);
    require(!tensors_.empty(), source_.path, ": include and exclude leave no tensor of ",
            source_.tensors.size(), "; widen --include, or drop an --exclude");
  }

  // A tied name goes with its tensor; alone, when that one is excluded.
  void add_alias(const std::string& alias, const std::string& stored) {
    if (!wanted(alias) || by_name_.contains(alias)) return;
    if (by_name_.contains(stored) && wanted(stored)) {
      report_.aliases[alias] = stored;
      return;
    }
    const auto from = by_name_.find(stored);
    if (from == by_name_.end()) return;
    const NamedTensor& tensor = *from->second;
    const auto [taken, first] = stand_ins_.emplace(stored, alias);
    if (first) {
      tensors_.push_back({{alias, type_for(tensor), tensor.value.shape}, &tensor});
    } else {
      report_.aliases[alias] = taken->second;
    }
  }

  void check_model() const {
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const Exported& e : tensors_) shapes[e.planned.name] = e.planned.shape;
    for (const auto& [alias, stored] : report_.aliases) shapes[alias] = shapes[stored];
    options_.model.check(shapes, options_.include.empty() && options_.exclude.empty());
  }

  std::string identity() const {
    std::string out = concat("export ", options_.format, " ", options_.max_shard_bytes);
    for (const Exported& e : tensors_)
      out += concat("\n", e.planned.name, " ", name_of(e.planned.type));
    return out;
  }

  int64_t bytes_of(const std::vector<Exported>& tensors) const {
    int64_t sum = 0;
    for (const Exported& e : tensors) {
      sum += numel_of(e.planned.shape) * size_of(e.planned.type);
    }
    return sum;
  }

  std::vector<std::vector<int>> shards() const {
    return formats::plan_shards(planned(tensors_), static_cast<uint64_t>(options_.max_shard_bytes));
  }

  std::vector<PlannedOutput> plan_safetensors() const {
    std::map<std::string, std::string> metadata;
    for (const auto& [alias, stored] : report_.aliases) {
      metadata["zeromuon.alias." + alias] = stored;
    }
    std::vector<PlannedOutput> outputs;
    const auto shards = this->shards();
    const int count = static_cast<int>(shards.size());
    for (int i = 0; i < count; ++i) {
      std::vector<Exported> tensors;
      for (const int t : shards[i]) tensors.push_back(tensors_[t]);
      const std::string path = (fs::path(options_.output) / formats::shard_name(i, count)).string();
      const bool replace = options_.run.force;
      outputs.push_back(
          {path, bytes_of(tensors),
           [=] { return std::make_unique<SafetensorsOutput>(path, tensors, metadata, replace); }});
    }
    return outputs;
  }

  // Files of another model in the output folder, in either format: they would be read instead of
  // this one, or beside it.
  std::vector<std::string> others(const std::vector<std::string>& names) const {
    std::vector<std::string> out;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(options_.output, error)) {
      const bool model =
          matches_any({"model.safetensors", "model.safetensors.index.json",
                       "model-[0-9]*-of-[0-9]*.safetensors", "pytorch_model.bin",
                       "pytorch_model.bin.index.json", "pytorch_model-[0-9]*-of-[0-9]*.bin"},
                      entry.path().filename().string());
      const std::string path = entry.path().string();
      if (model && std::find(names.begin(), names.end(), path) == names.end()) out.push_back(path);
    }
    return out;
  }

  void refuse_others(const std::vector<std::string>& names) const {
    const std::vector<std::string> found = others(names);
    if (found.empty() || options_.run.force) return;
    throw_format_error(
        found.front(), -1, "an output folder without another model", "one that has it",
        "choose another output, or say --force to remove it once this one is written");
  }

  void remove_others(const std::vector<std::string>& names) {
    std::error_code error;
    for (const std::string& path : others(names)) {
      fs::remove(path, error);
      report_.notes.push_back("removed " + path + " of an earlier export");
    }
  }

  void check_source() const {
    CrcCheck check;
    for (const Exported& e : tensors_) check.add(e.from->value);
    check.require_whole(options_.run);
  }

  // A folder gets pytorch_model.bin; a name with an ending is the file itself.
  bool is_torch_file() const {
    const std::string ending = fs::path(options_.output).extension().string();
    return ending == ".pt" || ending == ".bin" || ending == ".pth";
  }

  std::unique_ptr<OpenOutput> open_torch(const std::string& path) const {
    auto out = std::make_unique<TorchOutput>(path, options_.run.force);
    PickleGraph& graph = out->writer().graph();
    std::vector<std::pair<NodeId, NodeId>> items;
    std::map<std::string, NodeId> nodes;
    for (const Exported& e : tensors_) {
      const NodeId node = out->add_tensor(block_of_tensor(e), e.planned.shape);
      items.emplace_back(graph.string(e.planned.name), node);
      nodes[e.planned.name] = node;
    }
    for (const auto& [alias, stored] : report_.aliases) {
      items.emplace_back(graph.string(alias), nodes.at(stored));
    }
    out->begin(graph.ordered_dict(std::move(items)));
    return out;
  }

  std::vector<PlannedOutput> plan_torch() const {
    const fs::path output = options_.output;
    const std::string path = (is_torch_file() ? output : output / "pytorch_model.bin").string();
    return {{path, bytes_of(tensors_), [=, this] { return open_torch(path); }}};
  }

  ExportOptions options_;
  Checkpoint source_;
  std::vector<Exported> tensors_;
  std::unordered_map<std::string, const NamedTensor*> by_name_;
  std::unordered_map<std::string, std::vector<std::string>> names_;  // its own and the tied ones
  std::map<std::string, std::string> stand_ins_;  // excluded tensor -> tied name written instead
  OutputReport report_;
};

}  // namespace

OutputReport export_weights(const ExportOptions& options) { return Export(options).run(); }

}  // namespace zeromuon::convert
