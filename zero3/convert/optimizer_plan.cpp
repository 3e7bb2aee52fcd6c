#include "zero3/convert/optimizer_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "zero3/convert/read_formats.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::convert {
namespace {

class SameOptimizer : public OptimizerPlan {
 public:
  explicit SameOptimizer(const Checkpoint& source) : OptimizerPlan(source) {
    for (const SubGroup& group : source.sub_groups) {
      if (group.param_group >= static_cast<int>(groups_.size())) {
        groups_.resize(group.param_group + 1);
      }
      auto& tensors = groups_[group.param_group];
      tensors.insert(tensors.end(), group.tensors.begin(), group.tensors.end());
    }
    for (size_t i = 0; i < source.tensors.size(); ++i) plan(source.tensors[i], states_[i]);
  }

  void add_scalars(TorchFileWriter& writer, int rank, const SubGroup& group,
                   NodeId state) const override {
    const TorchFile& file = optimizer_file(source_, rank);
    const PickleGraph& graph = file.graph();
    const NodeId all = graph.get(optimizer_state_dict(file), "state");
    std::set<int> sub_groups;
    for (const int t : group.tensors) sub_groups.insert(source_.tensors[t].sub_group);
    std::optional<std::string> scalars;  // of those before
    for (const int sub_group : sub_groups) {
      const NodeId from = graph.get(all, static_cast<int64_t>(sub_group));
      if (from == kNoNode) continue;
      const std::string here = describe_scalars(file, from);
      if (scalars && here != *scalars) {
        refuse(file.path(), "sub-groups of one parameter group with equal steps",
               *scalars + " and " + here, "take another sub_group_size, which does not join them");
      }
      if (!scalars) copy_scalars(writer, file, from, state);
      scalars = here;
    }
  }

  NodeId state_dict(TorchFileWriter& writer, int rank, const std::vector<SubGroup>& groups,
                    NodeId state) const override {
    const TorchFile& file = optimizer_file(source_, rank);
    const PickleGraph& graph = file.graph();
    const NodeId from = optimizer_state_dict(file);
    const NodeId old_state = graph.get(from, "state"), list = graph.get(from, "param_groups");
    if (old_state == kNoNode || list == kNoNode) {
      refuse(file.path(), "an optimizer state dict", "none", kDamaged);
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
};

}  // namespace

std::unique_ptr<OptimizerPlan> same_optimizer(const Checkpoint& source) {
  return std::make_unique<SameOptimizer>(source);
}

const TorchFile& optimizer_file(const Checkpoint& source, int rank) {
  return *source.optim_files.at(rank % source.optim_files.size());
}

NodeId params_node(PickleGraph& graph, const std::vector<SubGroup>& groups, int param_group) {
  std::vector<NodeId> numbers;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].param_group != param_group) continue;
    numbers.push_back(graph.integer(static_cast<int64_t>(i)));
  }
  return graph.sequence(NodeKind::kList, std::move(numbers));
}

NodeId optimizer_state_dict(const TorchFile& file) {
  const PickleGraph& graph = file.graph();
  const NodeId outer = graph.get(file.root(), "optimizer_state_dict");
  const NodeId inner = outer == kNoNode ? kNoNode : graph.get(outer, "optimizer_state_dict");
  return inner != kNoNode ? inner : outer;
}

std::vector<SubGroup> OptimizerPlan::cut_groups(int world_size, int64_t sub_group_size) const {
  std::vector<SubGroup> out;
  for (size_t g = 0; g < groups_.size(); ++g) {
    std::vector<int64_t> numels;
    for (const int tensor : groups_[g]) numels.push_back(source_.tensors[tensor].value.numel());
    auto begin = groups_[g].begin();
    for (const int64_t count : zero3::zero3_sub_groups(numels, world_size, sub_group_size)) {
      out.push_back({{begin, begin + count}, static_cast<int>(g)});
      begin += count;
    }
  }
  return out;
}

std::vector<std::string> OptimizerPlan::state_names(const SubGroup& group) const {
  std::vector<std::string> names;
  for (const auto& [name, state] : states(group.tensors.at(0))) names.push_back(name);
  for (const int tensor : group.tensors) {
    const States& states = this->states(tensor);
    const bool same = states.size() == names.size() &&
                      std::all_of(names.begin(), names.end(),
                                  [&](const std::string& n) { return states.contains(n); });
    if (same) continue;
    refuse(source_.folder, "the same optimizer states for all parameters of a group",
           "others for \"" + source_.tensors[tensor].name + "\"",
           "the checkpoint was saved before every group was stepped: use a later one");
  }
  return names;
}

Piece piece_of(const TensorSource& source, int64_t begin, int64_t numel, double factor) {
  if (!source.strides.empty()) return {source, begin, numel, factor};
  return {{source.type, {numel}, ranges_of(source, begin, numel), {}}, 0, numel, factor};
}

}  // namespace zeromuon::convert
