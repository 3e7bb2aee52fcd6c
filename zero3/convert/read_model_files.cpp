// What DeepSpeed's *_model_states.pt say, for ZeRO-3 and universal checkpoints alike.
#include <algorithm>
#include <set>
#include <unordered_map>

#include "zero3/convert/entry.h"
#include "zero3/convert/read_formats.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::convert {
namespace {

constexpr const char* kRestore = "restore the file, or use an older checkpoint";

NodeId need(const TorchFile& file, NodeId dict, const char* key) {
  const NodeId node = file.graph().get(dict, key);
  if (node == kNoNode) {
    refuse(file.path(), std::string("an entry \"") + key + "\"", "none",
           "this is no model file of a ZeRO-3 checkpoint");
  }
  return node;
}

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
  bool operator==(const NamedShape&) const = default;
};

std::vector<NamedShape> read_shapes(const TorchFile& file, NodeId dict) {
  const PickleGraph& graph = file.graph();
  std::vector<NamedShape> out;
  for (const auto& [key, value] : graph.dict_items(dict)) {
    NamedShape named{std::string(graph.as_text(key)), {}};
    if (!graph.as_shape(value, named.shape) || numel_of(named.shape) < 0) {
      refuse(file.path(), "the shape of \"" + named.name + "\"", graph.describe(value, 60),
             kDamaged);
    }
    out.push_back(std::move(named));
  }
  return out;
}

// A list of dicts, one per sub-group; older DeepSpeeds have one dict.
std::vector<std::vector<NamedShape>> read_param_shapes(const TorchFile& file) {
  const PickleGraph& graph = file.graph();
  const NodeId node = need(file, file.root(), "param_shapes");
  if (graph.is_dict(node)) return {read_shapes(file, node)};
  std::vector<std::vector<NamedShape>> out;
  for (const NodeId item : graph.items(node)) out.push_back(read_shapes(file, item));
  return out;
}

class ModelFiles {
 public:
  explicit ModelFiles(Checkpoint& checkpoint)
      : checkpoint_(checkpoint), first_(*checkpoint.model_files.at(0)), graph_(first_.graph()) {}

  void read() {
    read_trainable();
    read_frozen();
    read_buffers();
    read_aliases();
    check_ranks();
    read_facts();
  }

 private:
  void add(NamedTensor tensor) {
    if (!names_.insert(tensor.name).second) {
      refuse(first_.path(), "tensor names that differ", "\"" + tensor.name + "\" twice", kDamaged);
    }
    checkpoint_.tensors.push_back(std::move(tensor));
  }

  // Older DeepSpeeds (0.3.16 and 0.5.10 do) keep them in the optimizer's file.
  std::vector<std::vector<NamedShape>> shapes_of(size_t rank) const {
    const TorchFile& model = *checkpoint_.model_files[rank];
    const bool in_model = model.graph().get(model.root(), "param_shapes") != kNoNode;
    const bool has_other = rank < checkpoint_.optim_files.size();
    if (in_model || !has_other) return read_param_shapes(model);
    const TorchFile& optim = *checkpoint_.optim_files[rank];
    const bool in_optim = optim.graph().get(optim.root(), "param_shapes") != kNoNode;
    return read_param_shapes(in_optim ? optim : model);
  }

  void read_trainable() {
    shapes_ = shapes_of(0);
    for (size_t group = 0; group < shapes_.size(); ++group) {
      for (const NamedShape& named : shapes_[group]) {
        NamedTensor tensor;
        tensor.name = named.name;
        tensor.value.shape = named.shape;
        tensor.sub_group = static_cast<int>(group);
        add(std::move(tensor));
      }
    }
  }

  void read_frozen() {
    const NodeId shapes = graph_.get(first_.root(), "frozen_param_shapes");
    const std::vector<NamedShape> frozen = read_shapes(first_, shapes);
    if (frozen.empty()) return;
    const std::vector<Fragments> fragments = read_fragments();
    for (const NamedShape& named : frozen) {
      NamedTensor tensor;
      tensor.name = named.name;
      tensor.role = TensorRole::kFrozen;
      tensor.value.shape = named.shape;
      for (size_t rank = 0; rank < fragments.size(); ++rank) {
        const auto found = fragments[rank].find(named.name);
        add_fragment(tensor, rank, found == fragments[rank].end() ? kNoNode : found->second);
      }
      add(std::move(tensor));
    }
  }

  using Fragments = std::unordered_map<std::string_view, NodeId>;  // of a rank, by name

  std::vector<Fragments> read_fragments() const {
    std::vector<Fragments> out;
    for (const auto& file : checkpoint_.model_files) {
      const NodeId all = need(*file, file->root(), "frozen_param_fragments");
      Fragments& of_rank = out.emplace_back();
      for (const auto& [key, value] : file->graph().dict_items(all)) {
        of_rank[file->graph().as_text(key)] = value;
      }
    }
    return out;
  }

  // Cut as trained parameters are.
  void add_fragment(NamedTensor& tensor, size_t rank, NodeId node) {
    const TorchFile& file = *checkpoint_.model_files[rank];
    const auto ranks = static_cast<int>(checkpoint_.model_files.size());
    const int64_t numel = tensor.value.numel(), chunk = zero3::zero3_chunk(numel, ranks);
    const auto stored = file.tensor(node);
    if (!stored || stored->numel() != chunk || !stored->contiguous()) {
      refuse(file.path(),
             concat("a fragment of ", chunk, " elements of frozen \"", tensor.name, "\""),
             stored ? concat(stored->numel(), " elements") : "none", kRestore);
    }
    tensor.value.type = stored->type;
    const int64_t real = zero3::zero3_range(numel, ranks, static_cast<int>(rank)).numel;
    if (real == 0) return;
    const auto bytes = static_cast<uint64_t>(real * size_of(stored->type));
    tensor.value.ranges.push_back({file.shared_file(), stored->file_offset, bytes});
  }

  // The names of the buffers, which older DeepSpeeds do not list.
  std::optional<std::set<std::string_view>> listed_buffers() const {
    const NodeId listed = graph_.get(first_.root(), "buffer_names");
    if (listed == kNoNode) {
      checkpoint_.warnings.push_back(
          first_.path() +
          ": an older DeepSpeed, which does not list the buffers: those of shape "
          "(1,) look like its placeholders of parameters and are left out");
      return std::nullopt;
    }
    std::set<std::string_view> out;
    for (const NodeId name : graph_.items(listed)) out.insert(graph_.as_text(name));
    return out;
  }

  void read_buffers() {
    const NodeId module = need(first_, first_.root(), "module");
    const auto listed = listed_buffers();
    for (const auto& [key, value] : graph_.dict_items(module)) {
      const auto stored = first_.tensor(value);
      if (!stored) continue;
      NamedTensor tensor;
      tensor.name = graph_.as_text(key);
      const bool placeholder =
          names_.contains(tensor.name) || stored->shape == std::vector<int64_t>{1};
      if (listed ? !listed->contains(tensor.name) : placeholder) {
        placeholder_type_ = stored->type;
        continue;
      }
      tensor.role = TensorRole::kBuffer;
      tensor.value = source_of(first_, *stored);
      add(std::move(tensor));
    }
  }

  // Only rank 0 has them. The stored one may itself be an alias.
  void read_aliases() {
    const NodeId shared = graph_.get(first_.root(), "shared_params");
    for (const auto& [alias, stored] : graph_.dict_items(shared)) {
      const std::string name(graph_.as_text(alias)), target(graph_.as_text(stored));
      if (names_.contains(target) && !names_.contains(name)) checkpoint_.aliases[name] = target;
    }
  }

  // Ranks of different saves have other shapes or counters.
  void check_ranks() const {
    for (size_t rank = 1; rank < checkpoint_.model_files.size(); ++rank) {
      const TorchFile& file = *checkpoint_.model_files[rank];
      if (shapes_of(rank) != shapes_) {
        refuse(file.path(), "the parameters of rank 0", "others",
               "files of different checkpoints are mixed: restore this rank's");
      }
      for (const char* key : {"global_steps", "dp_world_size", "ds_version"}) {
        const std::string here = text_of(file, key), there = text_of(first_, key);
        if (here == there) continue;
        refuse(file.path(), std::string(key) + " " + there + ", as on rank 0", here,
               "files of different checkpoints are mixed: restore this rank's");
      }
    }
  }

  static std::string text_of(const TorchFile& file, const char* key) {
    const NodeId node = file.graph().get(file.root(), key);
    if (file.graph().is_none(node)) return "";
    if (file.graph().kind(node) == NodeKind::kString) {
      return std::string(file.graph().as_text(node));
    }
    return file.graph().describe(node, 80);
  }

  std::optional<int64_t> number(const char* key) const {
    const NodeId node = graph_.get(first_.root(), key);
    if (graph_.kind(node) != NodeKind::kInt) return std::nullopt;
    return graph_.as_int(node, 0);
  }

  void read_facts() {
    Facts& facts = checkpoint_.facts;
    facts.global_steps = number("global_steps");
    facts.global_samples = number("global_samples");
    facts.skipped_steps = number("skipped_steps");
    facts.dtype = placeholder_type_;
    const std::string version = text_of(first_, "ds_version");
    if (!version.empty()) facts.ds_version = version;
    const NodeId config = graph_.get(first_.root(), "ds_config");
    const NodeId type = graph_.find(config, {"optimizer", "type"});
    if (type != kNoNode) facts.optimizer_type = std::string(graph_.as_text(type));
    const NodeId size = graph_.find(config, {"zero_optimization", "sub_group_size"});
    const double elements = size == kNoNode ? 0 : graph_.as_real(size, 1e9);
    constexpr double kMost = 1e18;
    if (elements >= 1 && elements < kMost) facts.sub_group_size = static_cast<int64_t>(elements);
  }

  Checkpoint& checkpoint_;
  const TorchFile& first_;
  const PickleGraph& graph_;
  std::vector<std::vector<NamedShape>> shapes_;
  std::set<std::string> names_;
  ElementType placeholder_type_ = ElementType::kFloat32;
};

void read_entry(Checkpoint& checkpoint, const PickleGraph& graph, NodeId entry) {
  checkpoint.optimizer = Optimizer::kZeroMuon;
  const std::string_view kind = graph.as_text(graph.find(entry, {"options", "momentum_kind"}));
  checkpoint.momentum_kind = kind == "heavy_ball" ? "heavy_ball" : "ema";
  std::unordered_map<std::string_view, std::string_view> roles;
  for (const auto& [name, role] : graph.dict_items(graph.get(entry, "roles"))) {
    roles[graph.as_text(name)] = graph.as_text(role);
  }
  for (NamedTensor& tensor : checkpoint.tensors) {
    const auto found = roles.find(tensor.name);
    if (found == roles.end()) continue;
    tensor.role = found->second == "muon" ? TensorRole::kMuon : TensorRole::kAdamW;
  }
}

// A parameter group, whose params number its sub-groups; use_muon is DeepSpeed's own Muon's.
void read_group(Checkpoint& checkpoint, const PickleGraph& graph, int number, NodeId group) {
  const NodeId use_muon = graph.get(group, "use_muon"), params = graph.get(group, "params");
  if (use_muon != kNoNode) {
    checkpoint.optimizer = Optimizer::kDeepSpeedMuon;
    checkpoint.momentum_kind = "ema";  // it lerps towards the gradient
  }
  for (const NodeId index : graph.items(params)) {
    const int64_t sub_group = graph.as_int(index, -1);
    if (sub_group < 0 || sub_group >= static_cast<int64_t>(checkpoint.sub_groups.size())) continue;
    checkpoint.sub_groups[sub_group].param_group = number;
    if (use_muon == kNoNode) continue;
    for (const int tensor : checkpoint.sub_groups[sub_group].tensors) {
      checkpoint.tensors[tensor].role =
          graph.as_bool(use_muon, false) ? TensorRole::kMuon : TensorRole::kAdamW;
    }
  }
}

// What the configuration calls an optimizer of which nothing else tells.
Optimizer optimizer_of_type(const std::optional<std::string>& type) {
  if (!type || type->empty()) return Optimizer::kNone;
  if (*type == "AdamW") return Optimizer::kAdamW;
  return *type == "ZeroMuon" ? Optimizer::kZeroMuon : Optimizer::kOther;
}

}  // namespace

void read_model_files(Checkpoint& checkpoint) { ModelFiles(checkpoint).read(); }

std::optional<int64_t> optimizer_step(const OptimizerFile& optimizer) {
  const PickleGraph& graph = optimizer.file->graph();
  for (const auto& [index, values] : graph.dict_items(graph.get(optimizer.state_dict, "state"))) {
    const NodeId step = graph.get(values, "step");
    if (step == kNoNode) continue;
    const auto stored = optimizer.file->tensor(step);
    if (!stored) return graph.as_int(step, 0);
    if (stored->type != ElementType::kFloat32 || stored->numel() != 1) continue;
    float value = 0;
    optimizer.file->file().read(stored->file_offset, &value, sizeof value);
    if (value >= 0 && value < 1e15F) return static_cast<int64_t>(value);
  }
  return std::nullopt;
}

void read_optimizer(Checkpoint& checkpoint, const OptimizerFile& optimizer) {
  if (optimizer.state_dict == kNoNode) return;
  const PickleGraph& graph = optimizer.file->graph();
  int number = 0;
  for (const NodeId group : graph.items(graph.get(optimizer.state_dict, "param_groups"))) {
    read_group(checkpoint, graph, number++, group);
  }
  const NodeId entry = find_entry(*optimizer.file, optimizer.state_dict);
  if (entry != kNoNode) read_entry(checkpoint, graph, entry);
  checkpoint.facts.optimizer_step = optimizer_step(optimizer);
  if (checkpoint.optimizer != Optimizer::kNone) return;
  const bool adam = std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                                [](const auto& t) { return t.states.contains("exp_avg_sq"); });
  checkpoint.optimizer =
      adam ? Optimizer::kAdamW : optimizer_of_type(checkpoint.facts.optimizer_type);
}

void drop_placeholders(Checkpoint& checkpoint) {
  for (NamedTensor& tensor : checkpoint.tensors) {
    if (tensor.role == TensorRole::kMuon) tensor.states.erase("exp_avg_sq");
    if (tensor.role == TensorRole::kMuon && checkpoint.optimizer == Optimizer::kDeepSpeedMuon) {
      auto momentum = tensor.states.extract("exp_avg");  // its name in universal checkpoints
      if (!momentum.empty()) {
        momentum.key() = "momentum_buffer";
        tensor.states.insert(std::move(momentum));
      }
    }
    if (checkpoint.optimizer == Optimizer::kAdamW && tensor.role == TensorRole::kUnknown) {
      tensor.role = TensorRole::kAdamW;
    }
  }
}

}  // namespace zeromuon::convert
