// What a conversion to ZeroMuon writes beside states: the values of parameter groups, and the
// entry.
#pragma once

#include <string>
#include <vector>

#include "csrc/formats/torch_writer.h"
#include "zero3/convert/checkpoint.h"
#include "zero3/convert/optimizer_facts.h"

namespace zeromuon::convert {

struct ConvertedEntry {
  const Checkpoint& source;
  const Hyper& hyper;
  const std::string& momentum_kind;
  const std::vector<TensorRole>& roles;         // of the source's tensors
  const std::vector<std::vector<int>>& groups;  // its tensors, by parameter group
};

// lr, initial_lr where there is a schedule, weight_decay.
formats::NodeId muon_group(formats::PickleGraph& graph, const Hyper& hyper);

// (beta1, beta2) as a tuple or a list.
formats::NodeId betas_node(formats::PickleGraph& graph, const Hyper& hyper, formats::NodeKind kind);

// The entry, see entry.h. What the source's own has beside is kept.
formats::NodeId entry_node(formats::TorchFileWriter& writer, const ConvertedEntry& entry);

}  // namespace zeromuon::convert
