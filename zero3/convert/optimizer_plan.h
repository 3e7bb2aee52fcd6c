// What the optimizer of an output holds: which states each parameter has and where they come from,
// and how the rest of its state dict is written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "zero3/convert/checkpoint.h"
#include "zero3/convert/transfer.h"

namespace zeromuon::convert {

// A state with one value per element.
struct PlannedState {
  enum class Fill : uint8_t {
    kSource,
    kZeros,
    kOneZero,  // zeros stored as one element, see python/zeromuon/optimizer/state.py
  };
  Fill fill = Fill::kSource;
  TensorSource source;
  double factor = 1;
  ElementType type = ElementType::kFloat32;
};

using States = std::map<std::string, PlannedState>;

class OptimizerPlan {
 public:
  explicit OptimizerPlan(const Checkpoint& source)
      : source_(source), states_(source.tensors.size()) {}
  virtual ~OptimizerPlan() = default;

  const Checkpoint& source() const { return source_; }
  // Parameters of each parameter group, in flat order.
  const std::vector<std::vector<int>>& groups() const { return groups_; }
  const States& states(int tensor) const { return states_.at(tensor); }
  // Parameter groups cut into sub-groups as DeepSpeed cuts them.
  std::vector<SubGroup> cut_groups(int world_size, int64_t sub_group_size) const;
  // The states that all parameters of a group have. Raises FormatError when they differ.
  std::vector<std::string> state_names(const SubGroup& group) const;
  // What a flat group has beside its flat states, such as its step. Added to `state`.
  virtual void add_scalars(TorchFileWriter& writer, int rank, const SubGroup& group,
                           NodeId state) const = 0;
  // The optimizer's state dict around `state`.
  virtual NodeId state_dict(TorchFileWriter& writer, int rank, const std::vector<SubGroup>& groups,
                            NodeId state) const = 0;
  // Changes to the model files: the node of the learning rate scheduler, or kNoNode to copy it.
  virtual NodeId scheduler(TorchFileWriter&, const TorchFile&) const { return kNoNode; }

 protected:
  const Checkpoint& source_;
  std::vector<std::vector<int>> groups_;
  std::vector<States> states_;
};

// The optimizer as it is in the source.
std::unique_ptr<OptimizerPlan> same_optimizer(const Checkpoint& source);

// "params" of a parameter group: the numbers of its flat groups.
NodeId params_node(PickleGraph& graph, const std::vector<SubGroup>& groups, int param_group);

// The optimizer file whose scalars a rank of the output takes, and its state dict.
const TorchFile& optimizer_file(const Checkpoint& source, int rank);
NodeId optimizer_state_dict(const TorchFile& file);

// Elements [begin, begin + numel) of a source, without the ranges outside.
Piece piece_of(const TensorSource& source, int64_t begin, int64_t numel, double factor = 1);

}  // namespace zeromuon::convert
