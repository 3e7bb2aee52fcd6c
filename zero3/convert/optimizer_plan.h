// What the optimizer of an output holds: which states each parameter has and where they come from,
// and how the rest of its state dict is written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/formats/torch_writer.h"
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
  formats::ElementType type = formats::ElementType::kFloat32;
};

using States = std::map<std::string, PlannedState>;

// Parameters that are flat together, by their numbers in Checkpoint::tensors.
struct FlatGroup {
  std::vector<int> tensors;
  int param_group = 0;
};

class OptimizerPlan {
 public:
  virtual ~OptimizerPlan() = default;

  // Parameters of each parameter group, in flat order.
  virtual const std::vector<std::vector<int>>& groups() const = 0;
  virtual const States& states(int tensor) const = 0;
  // What a flat group has beside its flat states, such as its step. Added to `state`.
  virtual void add_scalars(formats::TorchFileWriter& writer, int rank, const FlatGroup& group,
                           formats::NodeId state) const = 0;
  // The optimizer's state dict around `state`.
  virtual formats::NodeId state_dict(formats::TorchFileWriter& writer, int rank,
                                     const std::vector<FlatGroup>& groups,
                                     formats::NodeId state) const = 0;
  // Changes to the model files: the node of the learning rate scheduler, or kNoNode to copy it.
  virtual formats::NodeId scheduler(formats::TorchFileWriter&, const formats::TorchFile&) const {
    return formats::kNoNode;
  }
};

// The optimizer as it is in the source.
std::unique_ptr<OptimizerPlan> same_optimizer(const Checkpoint& source);

// Parameter groups cut into sub-groups as DeepSpeed cuts them.
std::vector<FlatGroup> cut_groups(const Checkpoint& source,
                                  const std::vector<std::vector<int>>& groups, int world_size,
                                  int64_t sub_group_size);

// The states that all parameters of a group have. Raises FormatError when they differ.
std::vector<std::string> state_names(const Checkpoint& source, const OptimizerPlan& plan,
                                     const FlatGroup& group);

// "params" of a parameter group: the numbers of its flat groups.
formats::NodeId params_node(formats::PickleGraph& graph, const std::vector<FlatGroup>& groups,
                            int param_group);

// The optimizer file whose scalars a rank of the output takes, and its state dict.
const formats::TorchFile& optimizer_file(const Checkpoint& source, int rank);
formats::NodeId optimizer_state_dict(const formats::TorchFile& file);

// Elements [begin, begin + numel) of a source, without the ranges outside.
Piece piece_of(const TensorSource& source, int64_t begin, int64_t numel, double factor = 1);

}  // namespace zeromuon::convert
