// Model files without optimizer: safetensors and torch state dicts.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "csrc/formats/safetensors.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

// The files of a model, and which one holds which tensor where there is an index.
struct ModelFolder {
  std::vector<fs::path> files;
  std::map<std::string, std::string> index;
};

// "name-*-of-00004" of name-00001-of-00004, or "".
std::string shard_pattern(const std::string& stem) {
  const size_t of = stem.rfind("-of-");
  const size_t dash =
      of == std::string::npos || of == 0 ? std::string::npos : stem.rfind('-', of - 1);
  if (dash == std::string::npos) return "";
  const auto digits = [&](size_t begin, size_t end) {
    return begin < end && stem.find_first_not_of("0123456789", begin) >= end;
  };
  const bool numbered =
      digits(dash + 1, of) && digits(of + 4, stem.size()) && stem.size() - of <= 12;
  return numbered ? stem.substr(0, dash) + "-*" + stem.substr(of) : "";
}

// Names of shards say how many there are.
void check_shards(const std::vector<fs::path>& files, const std::string& ending) {
  std::map<std::string, size_t> found;  // pattern -> shards
  for (const fs::path& file : files) {
    const std::string pattern = shard_pattern(file.stem().string());
    if (!pattern.empty()) ++found[pattern];
  }
  for (const auto& [pattern, count] : found) {
    const size_t all = std::strtoull(pattern.c_str() + pattern.rfind('-') + 1, nullptr, 10);
    if (count == all) continue;
    refuse((files.front().parent_path() / (pattern + ending)).string(), concat(all, " shards"),
           concat(count), "the model is incomplete: download or restore the rest");
  }
}

ModelFolder indexed_files(const fs::path& folder, const fs::path& index) {
  ModelFolder out{{}, formats::read_safetensors_index(index.string())};
  std::set<std::string> names;
  for (const auto& [tensor, file] : out.index) names.insert(file);
  for (const std::string& name : names) out.files.push_back(folder / name);
  return out;
}

ModelFolder files_of(const fs::path& path, const std::string& stem, const std::string& ending) {
  std::error_code ignored;
  const bool is_index = path.extension() == ".json";
  const fs::path folder = is_index ? path.parent_path() : path;
  if (!is_index && !fs::is_directory(path, ignored)) return {{path}, {}};
  const fs::path one = folder / (stem + ending);
  if (!is_index && fs::is_regular_file(one, ignored)) return {{one}, {}};
  const fs::path index = is_index ? path : fs::path(one.string() + ".index.json");
  if (fs::is_regular_file(index, ignored)) return indexed_files(folder, index);
  ModelFolder out;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ending) out.files.push_back(entry.path());
  }
  std::sort(out.files.begin(), out.files.end());
  check_shards(out.files, ending);
  return out;
}

class ModelReader {
 public:
  ModelReader(Kind kind, const fs::path& path, const ModelFolder& model) : model_(model) {
    out_.kind = kind;
    out_.folder = (fs::is_directory(path) ? path : path.parent_path()).string();
    out_.path = path.string();
  }

  Checkpoint finish() {
    for (const auto& [name, file] : model_.index) {
      if (names_.contains(name)) continue;
      refuse((fs::path(out_.folder) / file).string(), "the tensor \"" + name + "\" of the index",
             "none", "the model is incomplete: download or restore it");
    }
    std::map<ElementType, int64_t> types;
    for (const NamedTensor& t : out_.tensors) types[t.value.type] += t.value.numel();
    const auto most =
        std::max_element(types.begin(), types.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (most != types.end()) out_.facts.dtype = most->first;
    return std::move(out_);
  }

  void add_safetensors(const fs::path& path) {
    const formats::SafetensorsFile file(path.string());
    file.file().park();
    out_.files.push_back(path.string());
    for (const formats::SafetensorsEntry& entry : file.entries()) {
      add(path, entry.name,
          source_at(entry.type, entry.shape, {file.shared_file(), entry.file_offset, entry.bytes}));
    }
    for (const auto& [key, value] : file.metadata()) add_metadata(key, value);
  }

  void add_torch(const fs::path& path) {
    if (path.filename().string().find("zero_pp_rank_") != std::string::npos) {
      refuse(path.string(), "the state dict of a model",
             "one rank's part of a ZeRO-3 checkpoint, by its name",
             concat("give the folder of all ranks: ",
                    path.has_parent_path() ? path.parent_path().string() : "."));
    }
    const TorchFilePtr file = open_torch_file(path);
    file->file().park();
    out_.files.push_back(path.string());
    const size_t before = out_.tensors.size();
    const NodeId dict = state_dict_of(*file);
    flatten(*file, dict, "", 0);
    if (out_.tensors.size() > before) return;
    const bool left_out = !out_.warnings.empty();
    refuse(path.string(), "a dict of tensors",
           left_out ? out_.warnings.back() : file->graph().describe(file->root(), 80),
           left_out ? "save them dense" : "this is no model's state dict");
  }

 private:
  void add_metadata(const std::string& key, const std::string& value) {
    constexpr std::string_view kAlias = "zeromuon.alias.";
    const bool alias = key.starts_with(kAlias);
    (alias ? out_.aliases[key.substr(kAlias.size())] : out_.facts.metadata[key]) = value;
  }

  // {"state_dict": {...}} and its like are looked into.
  static NodeId state_dict_of(const TorchFile& file) {
    const PickleGraph& graph = file.graph();
    for (const auto& [key, value] : graph.dict_items(file.root())) {
      if (file.tensor(value)) return file.root();
    }
    for (const char* key : {"state_dict", "model_state_dict", "model", "module"}) {
      const NodeId node = graph.get(file.root(), key);
      if (graph.is_dict(node)) return node;
    }
    return file.root();
  }

  // The function of torch that makes a tensor of a kind that is not read (sparse, quantized, ...).
  static std::string tensor_maker(const PickleGraph& graph, NodeId node) {
    const formats::Call* call = graph.as_call(node);
    const std::string name = call == nullptr ? "" : graph.global_name(call->callable);
    return name.starts_with("torch.") && name.find("_rebuild_") != std::string::npos ? name : "";
  }

  void flatten(const TorchFile& file, NodeId node, const std::string& prefix, int depth) {
    constexpr int kMaxDepth = 16;
    const PickleGraph& graph = file.graph();
    if (depth > kMaxDepth) return;
    for (const auto& [key, value] : graph.dict_items(node)) {
      const bool text = graph.kind(key) == NodeKind::kString;
      const std::string name =
          prefix + (text ? std::string(graph.as_text(key)) : graph.describe(key, 40));
      if (const auto stored = file.tensor(value)) {
        add_stored(file, name, *stored);
      } else if (const std::string maker = tensor_maker(graph, value); !maker.empty()) {
        out_.warnings.push_back(concat(file.path(), ": \"", name, "\" is made by ", maker,
                                       ", not stored as plain elements: left out"));
      } else if (++visited_ < graph.size()) {  // shared dicts must not multiply
        flatten(file, value, name + ".", depth + 1);
      }
    }
  }

  // The same elements under a second name are an alias.
  void add_stored(const TorchFile& file, const std::string& name, const StoredTensor& stored) {
    if (stored.numel() > 0) {
      const ViewKey key{file.path(), stored.storage, stored.file_offset,
                        stored.type, stored.shape,   stored.strides};
      const auto [found, added] = views_.emplace(key, name);
      if (!added) {
        if (found->second != name) out_.aliases[name] = found->second;
        names_.insert(name);
        return;
      }
    }
    add(file.path(), name, source_of(file, stored));
  }

  void add(const fs::path& path, const std::string& name, TensorSource source) {
    if (!names_.insert(name).second) {
      refuse(path.string(), "tensor names that differ", "\"" + name + "\", which is in two places",
             "remove the file that does not belong to the model");
    }
    const auto indexed = model_.index.find(name);
    if (!model_.index.empty() && indexed == model_.index.end()) {
      out_.warnings.push_back(path.string() + ": \"" + name + "\" is not in the index");
    }
    NamedTensor tensor;
    tensor.name = name;
    tensor.value = std::move(source);
    out_.tensors.push_back(std::move(tensor));
  }

  using ViewKey = std::tuple<std::string, std::string, uint64_t, ElementType, std::vector<int64_t>,
                             std::vector<int64_t>>;
  const ModelFolder& model_;
  Checkpoint out_;
  std::set<std::string> names_;
  std::map<ViewKey, std::string> views_;
  size_t visited_ = 0;
};

}  // namespace

Checkpoint read_safetensors(const fs::path& path) {
  const ModelFolder model = files_of(path, "model", ".safetensors");
  ModelReader reader(Kind::kSafetensors, path, model);
  for (const fs::path& file : model.files) reader.add_safetensors(file);
  return reader.finish();
}

Checkpoint read_torch(const fs::path& path) {
  const ModelFolder model = files_of(path, "pytorch_model", ".bin");
  ModelReader reader(Kind::kTorch, path, model);
  for (const fs::path& file : model.files) reader.add_torch(file);
  return reader.finish();
}

}  // namespace zeromuon::convert
