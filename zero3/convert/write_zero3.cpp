#include "zero3/convert/write_zero3.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "csrc/formats/format_error.h"
#include "csrc/formats/output_file.h"
#include "zero3/convert/crcs.h"
#include "zero3/convert/model_root.h"
#include "zero3/convert/names.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;
using formats::ElementType;
using formats::kNoNode;
using formats::NodeId;
using formats::NodeKind;
using formats::PickleGraph;
using formats::TorchFile;

constexpr int kMaxRanks = 1 << 16;

// The real elements of a parameter on a rank, and how many its chunk has in all.
struct Shard {
  int64_t begin = 0, real = 0, chunk = 0;
};

Shard shard_of(int64_t numel, int world_size, int rank) {
  const int64_t chunk = (numel + world_size - 1) / world_size;
  const int64_t begin = std::min(numel, rank * chunk);
  return {begin, std::clamp<int64_t>(numel - rank * chunk, 0, chunk), chunk};
}

// The shard's elements, then zeros up to its chunk.
void add_shard(Block& block, const TensorSource* source, const Shard& shard, double factor) {
  const bool copies = source != nullptr && shard.real > 0;
  if (copies) block.pieces.push_back(piece_of(*source, shard.begin, shard.real, factor));
  const int64_t zeros = shard.chunk - (copies ? shard.real : 0);
  if (zeros > 0) block.pieces.push_back({{block.type, {zeros}, {}, {}}, 0, zeros, 1});
}

class Zero3Writer {
 public:
  Zero3Writer(const Checkpoint& source, const OptimizerPlan& plan, const Zero3Target& target,
              const RunOptions& run)
      : source_(source), plan_(plan), target_(target), run_(run) {
    check_new_tag(target.tag, "--new-tag");
    require(target.world_size >= 1 && target.world_size <= kMaxRanks,
            "world_size: expected 1 to 65536, got ", target.world_size);
    require(!target.output.empty(), "output: expected a path, got an empty text");
    require(target.sub_group_size >= 1, "sub_group_size: expected at least 1, got ",
            target.sub_group_size);
    groups_ = cut_groups(source, plan.groups(), target.world_size, target.sub_group_size);
    folder_ = fs::path(target.output) / target.tag;
    prefix_ = source.facts.contains("optim_prefix")    ? source.facts.at("optim_prefix")
              : source.facts.at("dtype") == "bfloat16" ? "bf16_"
                                                       : "";
  }

  void write(OutputReport& report) {
    std::vector<PlannedOutput> outputs;
    std::vector<std::string> names;
    for (int rank = 0; rank < target_.world_size; ++rank) {
      outputs.push_back({model_path(rank), 0, [=, this] { return open_model(rank); }});
      outputs.push_back({optim_path(rank), optim_bytes(), [=, this] { return open_optim(rank); }});
    }
    for (const PlannedOutput& output : outputs) names.push_back(output.path);
    check_other_ranks(names);
    for (const fs::path& place : {fs::path(target_.output), folder_}) {
      if (looks_like_universal(place)) refuse_kind(place.string(), "a universal checkpoint");
    }
    Journal journal(folder_.string(), target_.what, source_, run_, names);
    require_whole(source_, run_);
    formats::make_folders(folder_.string());
    write_journalled(std::move(outputs), journal, run_, report);
    const std::string latest = (fs::path(target_.output) / "latest").string();
    formats::write_text(latest, target_.tag, true);
    report.files.push_back(latest);
    report.tensors = static_cast<int64_t>(source_.tensors.size());
    journal.remove();
  }

 private:
  std::string model_path(int rank) const {
    return (folder_ / concat("zero_pp_rank_", rank, "_mp_rank_00_model_states.pt")).string();
  }
  std::string optim_path(int rank) const {
    return (folder_ / concat(prefix_, "zero_pp_rank_", rank, "_mp_rank_00_optim_states.pt"))
        .string();
  }

  // Files of another world size beside ours would make the checkpoint unreadable.
  void check_other_ranks(const std::vector<std::string>& names) const {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_, error)) {
      const std::string path = entry.path().string();
      if (path.find("zero_pp_rank_") == std::string::npos || path.ends_with(".partial")) continue;
      if (std::find(names.begin(), names.end(), path) != names.end()) continue;
      formats::throw_format_error(path, -1, "an output folder without files of another checkpoint",
                                  "one that has them", "choose another output or --new-tag");
    }
  }

  int64_t optim_bytes() const {
    int64_t sum = 0;
    for (const FlatGroup& group : groups_) {
      for (const int t : group.tensors) {
        const int64_t chunk =
            shard_of(source_.tensors[t].value.numel(), target_.world_size, 0).chunk;
        sum += chunk * formats::size_of(source_.tensors[t].value.type);
        for (const auto& [name, state] : plan_.states(t)) {
          if (state.fill != PlannedState::Fill::kOneZero)
            sum += chunk * formats::size_of(state.type);
        }
      }
    }
    return sum;
  }

  // ---- optimizer files

  NodeId flat_tensor(TorchOutput& out, Block block, bool requires_grad) const {
    const int64_t numel = block.numel();
    return out.add_tensor(std::move(block), {numel}, requires_grad);
  }

  Block weights_of(const FlatGroup& group, int rank) const {
    Block block;
    block.type = source_.tensors[group.tensors.at(0)].value.type;
    for (const int t : group.tensors) {
      const TensorSource& value = source_.tensors[t].value;
      add_shard(block, &value, shard_of(value.numel(), target_.world_size, rank), 1);
    }
    return block;
  }

  NodeId state_tensor(TorchOutput& out, const FlatGroup& group, const std::string& name,
                      int rank) const {
    Block block;
    block.type = plan_.states(group.tensors.at(0)).at(name).type;
    bool one_zero = true;
    for (const int t : group.tensors) {
      const PlannedState& state = plan_.states(t).at(name);
      const Shard shard = shard_of(source_.tensors[t].value.numel(), target_.world_size, rank);
      one_zero = one_zero && state.fill == PlannedState::Fill::kOneZero;
      const bool copies = state.fill == PlannedState::Fill::kSource;
      add_shard(block, copies ? &state.source : nullptr, shard, state.factor);
    }
    if (!one_zero) return flat_tensor(out, std::move(block), false);
    const int64_t numel = block.numel();
    block.pieces = {{{block.type, {1}, {}, {}}, 0, 1, 1}};
    return out.add_repeated(std::move(block), numel);
  }

  std::unique_ptr<OpenOutput> open_optim(int rank) const {
    auto out = std::make_unique<TorchOutput>(optim_path(rank), run_.force);
    formats::TorchFileWriter& writer = out->writer();
    PickleGraph& graph = writer.graph();
    const NodeId all = graph.dict();
    std::vector<NodeId> flat;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const NodeId state = graph.dict();
      plan_.add_scalars(writer, rank, groups_[g], state);
      for (const std::string& name : state_names(source_, plan_, groups_[g])) {
        graph.set(state, name, state_tensor(*out, groups_[g], name, rank));
      }
      flat.push_back(flat_tensor(*out, weights_of(groups_[g], rank), true));
      if (!graph.dict_items(state).empty()) {
        const NodeId number = graph.integer(static_cast<int64_t>(g));
        graph.mutable_dict_items(all).emplace_back(number, state);
      }
    }
    const NodeId state_dict = plan_.state_dict(writer, rank, groups_, all);
    out->begin(optim_root(writer, rank, state_dict, graph.sequence(NodeKind::kList, flat)));
    return out;
  }

  // The source's file around the new optimizer and flat groups.
  NodeId optim_root(formats::TorchFileWriter& writer, int rank, NodeId state_dict,
                    NodeId flat) const {
    const TorchFile& file = optimizer_file(source_, rank);
    PickleGraph& graph = writer.graph();
    const PickleGraph& from = file.graph();
    const bool universal = source_.kind == Kind::kUniversal;
    const NodeId inner = universal ? file.root() : from.get(file.root(), "optimizer_state_dict");
    const NodeId zero = graph.dict();
    for (const auto& [key, value] : from.dict_items(inner)) {
      const std::string_view name = from.as_text(key);
      if (universal && name == "param_groups") continue;
      const NodeId node = name == "optimizer_state_dict" ? state_dict
                          : name == "fp32_flat_groups"   ? flat
                          : name == "partition_count"    ? graph.integer(target_.world_size)
                                                         : writer.copy_of(file, value);
      graph.set(zero, name, node);
    }
    graph.set(zero, "fp32_flat_groups", flat);
    graph.set(zero, "partition_count", graph.integer(target_.world_size));
    graph.set(zero, "optimizer_state_dict", state_dict);
    const NodeId root = graph.dict();
    graph.set(root, "optimizer_state_dict", zero);
    const TorchFile& model = *source_.model_files.at(rank % source_.model_files.size());
    for (const char* key : {"ds_config", "ds_version"}) {
      const TorchFile& owner = universal ? model : file;
      const NodeId value = owner.graph().get(owner.root(), key);
      if (value != kNoNode) graph.set(root, key, writer.copy_of(owner, value));
    }
    return root;
  }

  // ---- model files

  NodeId fragments_node(TorchOutput& out, int rank) const {
    PickleGraph& graph = out.writer().graph();
    std::vector<std::pair<NodeId, NodeId>> items;
    for (const NamedTensor& tensor : source_.tensors) {
      if (tensor.role != TensorRole::kFrozen) continue;
      Block block;
      block.type = tensor.value.type;
      add_shard(block, &tensor.value, shard_of(tensor.value.numel(), target_.world_size, rank), 1);
      const NodeId name = graph.string(tensor.name);
      items.emplace_back(name, flat_tensor(out, std::move(block), false));
    }
    return graph.ordered_dict(std::move(items));
  }

  std::unique_ptr<OpenOutput> open_model(int rank) const {
    auto out = std::make_unique<TorchOutput>(model_path(rank), run_.force);
    formats::TorchFileWriter& writer = out->writer();
    const TorchFile& file = *source_.model_files.at(rank % source_.model_files.size());
    const auto changed = [&](std::string_view name, NodeId value) {
      if (name == "dp_world_size") return writer.graph().integer(target_.world_size);
      const bool fragments = name == "frozen_param_fragments" && !file.graph().is_none(value);
      return fragments ? fragments_node(*out, rank) : kNoNode;
    };
    out->begin(model_root(writer, source_, plan_, groups_, file, changed));
    return out;
  }

  const Checkpoint& source_;
  const OptimizerPlan& plan_;
  const Zero3Target& target_;
  const RunOptions& run_;
  std::vector<FlatGroup> groups_;
  fs::path folder_;
  std::string prefix_;
};

}  // namespace

int64_t sub_group_size_of(const Checkpoint& source) {
  constexpr int64_t kDefault = 1'000'000'000;  // DeepSpeed's
  const auto said = source.facts.find("sub_group_size");
  const int64_t own =
      said == source.facts.end() ? 0 : std::strtoll(said->second.c_str(), nullptr, 10);
  return own > 0 ? own : kDefault;
}

void write_zero3(const Checkpoint& source, const OptimizerPlan& plan, const Zero3Target& target,
                 const RunOptions& run, OutputReport& report) {
  Zero3Writer(source, plan, target, run).write(report);
}

}  // namespace zeromuon::convert
