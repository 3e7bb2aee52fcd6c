#include <algorithm>
#include <utility>

#include "csrc/formats/output_file.h"
#include "zero3/convert/crcs.h"
#include "zero3/convert/entry.h"
#include "zero3/convert/names.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/read_formats.h"
#include "zero3/convert/write_formats.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::convert {
namespace {

// A rank's flat shard, range by range in its order. What is in no range is zeros.
class ShardBlock {
 public:
  explicit ShardBlock(ElementType type) { block_.type = type; }

  void add(const TensorSource& source, const zero3::ShardRange& range, double factor = 1) {
    if (range.numel == 0) return;
    fill_to(range.offset);
    block_.pieces.push_back(piece_of(source, range.begin, range.numel, factor));
    end_ += range.numel;
  }

  Block finish(int64_t shard_numel) && {
    fill_to(shard_numel);
    return std::move(block_);
  }

 private:
  void fill_to(int64_t offset) {
    const int64_t zeros = offset - end_;
    if (zeros > 0) block_.pieces.push_back({{block_.type, {zeros}, {}, {}}, 0, zeros, 1});
    end_ = offset;
  }

  Block block_;
  int64_t end_ = 0;
};

zero3::ShardLayout layout_of(const Checkpoint& source, const SubGroup& group, int world_size) {
  std::vector<zero3::Zero3Param> params;
  int64_t end = 0;
  for (const int t : group.tensors) {
    const NamedTensor& tensor = source.tensors[t];
    const int64_t numel = tensor.value.numel(), chunk = zero3::zero3_chunk(numel, world_size);
    params.push_back({tensor.name, numel, chunk, end, 0, 0});
    end += chunk;
  }
  return zero3::zero3_layout(world_size, params);
}

class Zero3Writer {
 public:
  Zero3Writer(const OptimizerPlan& plan, const Zero3Target& target, const RunOptions& run)
      : source_(plan.source()), plan_(plan), target_(target), run_(run) {
    check_new_tag(target.tag, "--new-tag");
    require(target.world_size >= 1 && target.world_size <= kMaxRanks,
            "world_size: expected 1 to 65536, got ", target.world_size);
    require(!target.output.empty(), "output: expected a path, got an empty text");
    require(target.sub_group_size >= 1, "sub_group_size: expected at least 1, got ",
            target.sub_group_size);
    groups_ = plan.cut_groups(target.world_size, target.sub_group_size);
    for (const SubGroup& group : groups_) {
      layouts_.push_back(layout_of(source_, group, target.world_size));
    }
    folder_ = fs::path(target.output) / target.tag;
    const bool bf16 = source_.facts.dtype == ElementType::kBFloat16;
    prefix_ = source_.facts.optim_prefix.value_or(bf16 ? "bf16_" : "");
  }

  void write(OutputReport& report) {
    std::vector<PlannedOutput> outputs = plan_outputs();
    const std::vector<std::string> names = paths_of(outputs);
    check_other_ranks(names);
    for (const fs::path& place : {fs::path(target_.output), folder_}) {
      if (is_universal(place)) refuse_kind(place.string(), "a universal checkpoint");
    }
    Journal journal(folder_.string(), target_.what, source_, run_, names);
    require_whole(source_, run_);
    formats::make_folders(folder_.string());
    unmark();
    write_journalled(std::move(outputs), journal, run_, report);
    const std::string latest = (fs::path(target_.output) / "latest").string();
    formats::write_text(latest, target_.tag, true);
    report.files.push_back(latest);
    report.tensors = static_cast<int64_t>(source_.tensors.size());
    journal.remove();
  }

 private:
  // What is replaced file by file is no whole checkpoint of a run meanwhile, nor that of before
  // afterwards.
  void unmark() const {
    std::error_code ignored;
    if (fs::remove(folder_ / kEntrySchema.marker, ignored)) {
      formats::sync_folder(folder_.string());
    }
  }

  std::vector<PlannedOutput> plan_outputs() const {
    std::vector<PlannedOutput> out;
    for (int rank = 0; rank < target_.world_size; ++rank) {
      out.push_back({model_path(rank), 0, [=, this] { return open_model(rank); }});
      out.push_back({optim_path(rank), optim_bytes(), [=, this] { return open_optim(rank); }});
    }
    return out;
  }

  std::string model_path(int rank) const { return (folder_ / model_file_name(rank)).string(); }
  std::string optim_path(int rank) const {
    return (folder_ / optim_file_name(prefix_, rank)).string();
  }

  // Files of another world size beside ours would make the checkpoint unreadable.
  void check_other_ranks(const std::vector<std::string>& names) const {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_, error)) {
      const std::string path = entry.path().string();
      if (path.find("zero_pp_rank_") == std::string::npos || path.ends_with(".partial")) continue;
      if (std::find(names.begin(), names.end(), path) != names.end()) continue;
      throw_format_error(path, -1, "an output folder without files of another checkpoint",
                         "one that has them", "choose another output or --new-tag");
    }
  }

  int64_t optim_bytes() const {
    int64_t sum = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int first = groups_[g].tensors.at(0);
      int64_t element = size_of(source_.tensors[first].value.type);
      for (const auto& [name, state] : plan_.states(first)) {
        if (state.fill != PlannedState::Fill::kOneZero) element += size_of(state.type);
      }
      sum += element * layouts_[g].shard_numel();
    }
    return sum;
  }

  // ---- optimizer files

  static NodeId flat_tensor(TorchOutput& out, Block block, bool requires_grad) {
    const int64_t numel = block.numel();
    return out.add_tensor(std::move(block), {numel}, requires_grad);
  }

  Block weights_of(size_t group, int rank) const {
    const std::vector<int>& tensors = groups_[group].tensors;
    ShardBlock block(source_.tensors[tensors.at(0)].value.type);
    for (size_t p = 0; p < tensors.size(); ++p) {
      block.add(source_.tensors[tensors[p]].value,
                layouts_[group].real_range(static_cast<int>(p), rank));
    }
    return std::move(block).finish(layouts_[group].shard_numel());
  }

  NodeId state_tensor(TorchOutput& out, size_t group, const std::string& name, int rank) const {
    const std::vector<int>& tensors = groups_[group].tensors;
    const int64_t numel = layouts_[group].shard_numel();
    const ElementType type = plan_.states(tensors.at(0)).at(name).type;
    ShardBlock block(type);
    bool one_zero = true;
    for (size_t p = 0; p < tensors.size(); ++p) {
      const PlannedState& state = plan_.states(tensors[p]).at(name);
      one_zero = one_zero && state.fill == PlannedState::Fill::kOneZero;
      if (state.fill != PlannedState::Fill::kSource) continue;
      block.add(state.source, layouts_[group].real_range(static_cast<int>(p), rank), state.factor);
    }
    if (!one_zero) return flat_tensor(out, std::move(block).finish(numel), false);
    return out.add_repeated(std::move(ShardBlock(type)).finish(1), numel);
  }

  // What DeepSpeed keeps of a flat group: its scalars and its flat states.
  NodeId state_node(TorchOutput& out, size_t group, int rank) const {
    PickleGraph& graph = out.writer().graph();
    const NodeId state = graph.dict();
    plan_.add_scalars(out.writer(), rank, groups_[group], state);
    for (const std::string& name : plan_.state_names(groups_[group])) {
      graph.set(state, name, state_tensor(out, group, name, rank));
    }
    return state;
  }

  std::unique_ptr<OpenOutput> open_optim(int rank) const {
    auto out = std::make_unique<TorchOutput>(optim_path(rank), run_.force);
    TorchFileWriter& writer = out->writer();
    PickleGraph& graph = writer.graph();
    const NodeId all = graph.dict();
    std::vector<NodeId> flat;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const NodeId state = state_node(*out, g, rank);
      flat.push_back(flat_tensor(*out, weights_of(g, rank), true));
      if (graph.dict_items(state).empty()) continue;
      const NodeId number = graph.integer(static_cast<int64_t>(g));
      graph.mutable_dict_items(all).emplace_back(number, state);
    }
    const NodeId state_dict = plan_.state_dict(writer, rank, groups_, all);
    out->begin(optim_root(writer, rank, state_dict, graph.sequence(NodeKind::kList, flat)));
    return out;
  }

  // The source's entries around the new optimizer and flat groups.
  NodeId zero_node(TorchFileWriter& writer, const TorchFile& file, NodeId state_dict,
                   NodeId flat) const {
    PickleGraph& graph = writer.graph();
    const PickleGraph& from = file.graph();
    const bool universal = source_.kind == Kind::kUniversal;
    const NodeId inner = universal ? file.root() : from.get(file.root(), "optimizer_state_dict");
    const NodeId zero = graph.dict();
    const std::pair<std::string_view, NodeId> made[] = {
        {"fp32_flat_groups", flat},
        {"partition_count", graph.integer(target_.world_size)},
        {"optimizer_state_dict", state_dict}};
    for (const auto& [key, value] : from.dict_items(inner)) {
      const std::string_view name = from.as_text(key);
      if (universal && name == "param_groups") continue;
      const auto* own = std::find_if(std::begin(made), std::end(made),
                                     [&](const auto& m) { return m.first == name; });
      graph.set(zero, name, own != std::end(made) ? own->second : writer.copy_of(file, value));
    }
    for (const auto& [name, node] : made) graph.set(zero, name, node);
    return zero;
  }

  NodeId optim_root(TorchFileWriter& writer, int rank, NodeId state_dict, NodeId flat) const {
    const TorchFile& file = optimizer_file(source_, rank);
    PickleGraph& graph = writer.graph();
    const NodeId root = graph.dict();
    graph.set(root, "optimizer_state_dict", zero_node(writer, file, state_dict, flat));
    const TorchFile& model = *source_.model_files.at(rank % source_.model_files.size());
    const TorchFile& owner = source_.kind == Kind::kUniversal ? model : file;
    for (const char* key : {"ds_config", "ds_version"}) {
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
      const int64_t numel = tensor.value.numel();
      ShardBlock block(tensor.value.type);
      block.add(tensor.value, zero3::zero3_range(numel, target_.world_size, rank));
      const int64_t chunk = zero3::zero3_chunk(numel, target_.world_size);
      const NodeId name = graph.string(tensor.name);
      items.emplace_back(name, flat_tensor(out, std::move(block).finish(chunk), false));
    }
    return graph.ordered_dict(std::move(items));
  }

  std::unique_ptr<OpenOutput> open_model(int rank) const {
    auto out = std::make_unique<TorchOutput>(model_path(rank), run_.force);
    TorchFileWriter& writer = out->writer();
    const TorchFile& file = *source_.model_files.at(rank % source_.model_files.size());
    const auto changed = [&](std::string_view name, NodeId value) {
      if (name == "dp_world_size") return writer.graph().integer(target_.world_size);
      const bool fragments = name == "frozen_param_fragments" && !file.graph().is_none(value);
      return fragments ? fragments_node(*out, rank) : kNoNode;
    };
    out->begin(model_root(writer, plan_, groups_, file, changed));
    return out;
  }

  const Checkpoint& source_;
  const OptimizerPlan& plan_;
  const Zero3Target& target_;
  const RunOptions& run_;
  std::vector<SubGroup> groups_;
  std::vector<zero3::ShardLayout> layouts_;  // of the groups
  fs::path folder_;
  std::string prefix_;
};

}  // namespace

void write_zero3(const OptimizerPlan& plan, const Zero3Target& target, const RunOptions& run,
                 OutputReport& report) {
  Zero3Writer(plan, target, run).write(report);
}

}  // namespace zeromuon::convert
