#include "zero3/convert/optimizer_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "csrc/formats/format_error.h"
#include "zero3/convert/read_formats.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::convert {
namespace {

using formats::kNoNode;
using formats::NodeId;
using formats::PickleGraph;
using formats::TorchFile;
using formats::TorchFileWriter;

class SameOptimizer : public OptimizerPlan {
 public:
  explicit SameOptimizer(const Checkpoint& source) : source_(source) {
    for (const SubGroup& group : source.sub_groups) {
      if (group.param_group >= static_cast<int>(groups_.size())) {
        groups_.resize(group.param_group + 1);
      }
      auto& tensors = groups_[group.param_group];
      tensors.insert(tensors.end(), group.tensors.begin(), group.tensors.end());
    }
    states_.resize(source.tensors.size());
    for (size_t i = 0; i < source.tensors.size(); ++i) plan(source.tensors[i], states_[i]);
  }

  const std::vector<std::vector<int>>& groups() const override { return groups_; }
  const States& states(int tensor) const override { return states_.at(tensor); }

  void add_scalars(TorchFileWriter& writer, int rank, const FlatGroup& group,
                   NodeId state) const override {
    const TorchFile& file = optimizer_file(source_, rank);
    const PickleGraph& graph = file.graph();
    const NodeId all = graph.get(optimizer_state_dict(file), "state");
    std::set<int> sub_groups;
    for (const int t : group.tensors) sub_groups.insert(source_.tensors[t].sub_group);
    bool first = true;
    std::string scalars;
    for (const int sub_group : sub_groups) {
      const NodeId from = graph.get(all, static_cast<int64_t>(sub_group));
      if (from == kNoNode) continue;
      const std::string here = describe_scalars(file, from);
      if (!first && here != scalars) {
        refuse(file.path(), "sub-groups of one parameter group with equal steps",
               scalars + " and " + here, "take another sub_group_size, which does not join them");
      }
      if (first) copy_scalars(writer, file, from, state);
      scalars = here;
      first = false;
    }
  }

  NodeId state_dict(TorchFileWriter& writer, int rank, const std::vector<FlatGroup>& groups,
                    NodeId state) const override {
    const TorchFile& file = optimizer_file(source_, rank);
    const PickleGraph& graph = file.graph();
    const NodeId from = optimizer_state_dict(file);
    const NodeId old_state = graph.get(from, "state"), list = graph.get(from, "param_groups");
    if (old_state == kNoNode || list == kNoNode) {
      refuse(file.path(), "an optimizer state dict", "none", formats::kDamaged);
    }
    writer.replace(file, old_state, state);
    for (size_t g = 0; g < graph.items(list).size(); ++g) {
      const NodeId params = graph.get(graph.items(list)[g], "params");
      if (params == kNoNode) continue;
      writer.replace(file, params, params_node(writer.graph(), groups, static_cast<int>(g)));
    }
    return writer.copy_of(file, from);
  }

 private:
  void plan(const NamedTensor& tensor, States& states) const {
    for (const auto& [name, source] : tensor.states) {
      states[name] = {PlannedState::Fill::kSource, source, 1, source.type};
    }
    if (source_.optimizer == Optimizer::kZeroMuon && tensor.role == TensorRole::kMuon &&
        !states.empty()) {
      states["exp_avg_sq"].fill = PlannedState::Fill::kOneZero;
    }
  }

  // One value per element: a tensor of one dimension. All else is a scalar of the group.
  static bool is_scalar(const TorchFile& file, NodeId value) {
    const auto stored = file.tensor(value);
    return !stored || stored->shape.size() != 1;
  }

  static std::string describe_scalars(const TorchFile& file, NodeId values) {
    std::string out;
    for (const auto& [key, value] : file.graph().dict_items(values)) {
      if (!is_scalar(file, value)) continue;
      out += file.graph().describe(key) + ": ";
      const auto stored = file.tensor(value);
      if (!stored) {
        out += file.graph().describe(value) + " ";
        continue;
      }
      constexpr int64_t kLargest = 64;
      const auto bytes = static_cast<uint64_t>(std::min(stored->bytes(), kLargest));
      for (const uint8_t byte : file.file().read(stored->file_offset, bytes))
        out += concat(int{byte}, ".");
    }
    return out;
  }

  // Every group gets tensors of its own: torch's AdamW counts its step in place, and groups that
  // share one would count it once each.
  static void copy_scalars(TorchFileWriter& writer, const TorchFile& file, NodeId from, NodeId to) {
    for (const auto& [key, value] : file.graph().dict_items(from)) {
      if (!is_scalar(file, value)) continue;
      const auto stored = file.tensor(value);
      const NodeId copied = stored && stored->contiguous() ? writer.copy_apart(file, *stored)
                                                           : writer.copy_of(file, value);
      writer.graph().set(to, file.graph().as_text(key), copied);
    }
  }

  const Checkpoint& source_;
  std::vector<std::vector<int>> groups_;
  std::vector<States> states_;
};

}  // namespace

std::unique_ptr<OptimizerPlan> same_optimizer(const Checkpoint& source) {
  return std::make_unique<SameOptimizer>(source);
}

const TorchFile& optimizer_file(const Checkpoint& source, int rank) {
  return *source.optim_files.at(rank % source.optim_files.size());
}

NodeId params_node(PickleGraph& graph, const std::vector<FlatGroup>& groups, int param_group) {
  std::vector<NodeId> numbers;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].param_group != param_group) continue;
    numbers.push_back(graph.integer(static_cast<int64_t>(i)));
  }
  return graph.sequence(formats::NodeKind::kList, std::move(numbers));
}

NodeId optimizer_state_dict(const TorchFile& file) {
  const PickleGraph& graph = file.graph();
  const NodeId outer = graph.get(file.root(), "optimizer_state_dict");
  const NodeId inner = outer == kNoNode ? kNoNode : graph.get(outer, "optimizer_state_dict");
  return inner != kNoNode ? inner : outer;
}

std::vector<FlatGroup> cut_groups(const Checkpoint& source,
                                  const std::vector<std::vector<int>>& groups, int world_size,
                                  int64_t sub_group_size) {
  std::vector<FlatGroup> out;
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<int64_t> numels;
    for (const int tensor : groups[g]) numels.push_back(source.tensors[tensor].value.numel());
    auto begin = groups[g].begin();
    for (const int64_t count : zero3::zero3_sub_groups(numels, world_size, sub_group_size)) {
      out.push_back({{begin, begin + count}, static_cast<int>(g)});
      begin += count;
    }
  }
  return out;
}

std::vector<std::string> state_names(const Checkpoint& source, const OptimizerPlan& plan,
                                     const FlatGroup& group) {
  std::vector<std::string> names;
  for (const auto& [name, state] : plan.states(group.tensors.at(0))) names.push_back(name);
  for (const int tensor : group.tensors) {
    const States& states = plan.states(tensor);
    const bool same = states.size() == names.size() &&
                      std::all_of(names.begin(), names.end(),
                                  [&](const std::string& n) { return states.contains(n); });
    if (same) continue;
    refuse(source.folder, "the same optimizer states for all parameters of a group",
           "others for \"" + source.tensors[tensor].name + "\"",
           "the checkpoint was saved before every group was stepped: use a later one");
  }
  return names;
}

Piece piece_of(const TensorSource& source, int64_t begin, int64_t numel, double factor) {
  Piece piece{{source.type, {numel}, {}, {}}, 0, numel, factor};
  if (!source.strides.empty()) return {source, begin, numel, factor};
  const auto size = static_cast<uint64_t>(formats::size_of(source.type));
  uint64_t skip = static_cast<uint64_t>(begin) * size, left = static_cast<uint64_t>(numel) * size;
  for (const ByteRange& range : source.ranges) {
    if (left == 0) break;
    if (skip >= range.bytes) {
      skip -= range.bytes;
      continue;
    }
    const uint64_t bytes = std::min(left, range.bytes - skip);
    piece.source.ranges.push_back({range.file, range.offset + skip, bytes});
    left -= bytes;
    skip = 0;
  }
  invariant(left == 0, "a piece of a tensor is ", left, " bytes short");
  return piece;
}

}  // namespace zeromuon::convert
