#include "zero3/convert/converted_entry.h"

#include <utility>

#include "zero3/convert/entry.h"
#include "zero3/convert/optimizer_plan.h"

namespace zeromuon::convert {
namespace {

using formats::kNoNode;
using formats::NodeId;
using formats::NodeKind;
using formats::PickleGraph;
using formats::TorchFile;
using formats::TorchFileWriter;

NodeId roles_node(PickleGraph& graph, const ConvertedEntry& entry) {
  const NodeId roles = graph.dict();
  for (const auto& group : entry.groups) {
    for (const int t : group) {
      const NodeId role = graph.string(name_of(entry.roles[t]));
      graph.set(roles, entry.source.tensors[t].name, role);
    }
  }
  return roles;
}

// On top of `options`, those of the source: a resumed run is warned of what differs.
void set_options(PickleGraph& graph, NodeId options, const ConvertedEntry& entry) {
  const Hyper& hyper = entry.hyper;
  const bool one_rate = hyper.adam_lr == hyper.lr;
  graph.set(options, "lr", graph.real(hyper.lr));
  graph.set(options, "adam_lr", one_rate ? graph.none() : graph.real(hyper.adam_lr));
  graph.set(options, "momentum", graph.real(hyper.momentum));
  graph.set(options, "momentum_kind", graph.string(entry.momentum_kind));
  graph.set(options, "weight_decay", graph.real(hyper.weight_decay));
  graph.set(options, "betas", betas_node(graph, hyper, NodeKind::kList));
  graph.set(options, "eps", graph.real(hyper.eps));
  if (entry.source.optimizer == Optimizer::kDeepSpeedMuon) {
    graph.set(options, "scale", graph.string("original"));
  }
}

NodeId groups_node(PickleGraph& graph, const ConvertedEntry& entry) {
  const Hyper& hyper = entry.hyper;
  std::vector<NodeId> groups;
  for (size_t g = 0; g < entry.groups.size(); ++g) {
    groups.push_back(muon_group(graph, hyper));
    const double ratio = hyper.lr != 0 ? hyper.adam_lr / hyper.lr : 1;
    graph.set(groups.back(), "adam_ratio", graph.real(ratio));
  }
  return graph.sequence(NodeKind::kList, std::move(groups));
}

}  // namespace

NodeId muon_group(PickleGraph& graph, const Hyper& hyper) {
  const NodeId group = graph.dict();
  graph.set(group, "lr", graph.real(hyper.lr * hyper.lr_now));
  if (hyper.scheduled) graph.set(group, "initial_lr", graph.real(hyper.lr));
  graph.set(group, "weight_decay", graph.real(hyper.weight_decay));
  return group;
}

NodeId betas_node(PickleGraph& graph, const Hyper& hyper, NodeKind kind) {
  return graph.sequence(kind, {graph.real(hyper.beta1), graph.real(hyper.beta2)});
}

NodeId entry_node(TorchFileWriter& writer, const ConvertedEntry& entry) {
  PickleGraph& graph = writer.graph();
  const TorchFile& file = optimizer_file(entry.source, 0);
  const NodeId before = find_entry(file, optimizer_state_dict(file));
  const auto kept = [&](const char* field, NodeId otherwise) {
    const NodeId node = file.graph().get(before, field);
    return node == kNoNode ? otherwise : writer.copy_of(file, node);
  };
  const NodeId options = kept("options", graph.dict()), out = graph.dict();
  set_options(graph, options, entry);
  graph.set(out, "format", graph.integer(kEntrySchema.format));
  graph.set(out, "needs", kept("needs", graph.sequence(NodeKind::kList)));
  graph.set(out, "roles", roles_node(graph, entry));
  graph.set(out, "options", options);
  graph.set(out, "arithmetic", kept("arithmetic", graph.string("not recorded")));
  graph.set(out, "groups", groups_node(graph, entry));
  keep_unknown_fields(writer, file, before, out);
  return out;
}

}  // namespace zeromuon::convert
