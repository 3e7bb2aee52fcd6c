#include <utility>

#include "zero3/convert/write_formats.h"

namespace zeromuon::convert {

namespace {

NodeId shapes_node(PickleGraph& graph, const Checkpoint& source,
                   const std::vector<SubGroup>& flat_groups) {
  std::vector<NodeId> groups;
  for (const SubGroup& group : flat_groups) {
    std::vector<std::pair<NodeId, NodeId>> items;
    for (const int t : group.tensors) {
      const NodeId name = graph.string(source.tensors[t].name);
      items.emplace_back(name, graph.size_of_shape(source.tensors[t].value.shape));
    }
    groups.push_back(graph.ordered_dict(std::move(items)));
  }
  return graph.sequence(NodeKind::kList, std::move(groups));
}

void add_what_older_ones_lack(PickleGraph& graph, NodeId root, const Checkpoint& source,
                              NodeId shapes) {
  const auto lacks = [&](const char* key) { return graph.get(root, key) == kNoNode; };
  if (lacks("param_shapes")) graph.set(root, "param_shapes", shapes);
  if (lacks("buffer_names")) {
    std::vector<NodeId> names;
    for (const NamedTensor& tensor : source.tensors) {
      if (tensor.role == TensorRole::kBuffer) names.push_back(graph.string(tensor.name));
    }
    graph.set(root, "buffer_names", graph.sequence(NodeKind::kList, std::move(names)));
  }
  if (lacks("shared_params")) {
    const NodeId shared = graph.dict();
    for (const auto& [alias, stored] : source.aliases) {
      graph.set(shared, alias, graph.string(stored));
    }
    graph.set(root, "shared_params", shared);
  }
}

}  // namespace

NodeId model_root(TorchFileWriter& writer, const OptimizerPlan& plan,
                  const std::vector<SubGroup>& groups, const TorchFile& file,
                  const std::function<NodeId(std::string_view key, NodeId value)>& changed) {
  const Checkpoint& source = plan.source();
  PickleGraph& graph = writer.graph();
  const PickleGraph& from = file.graph();
  const NodeId root = graph.dict();
  for (const auto& [key, value] : from.dict_items(file.root())) {
    const std::string_view name = from.as_text(key);
    NodeId node = changed ? changed(name, value) : kNoNode;
    if (name == "param_shapes") node = shapes_node(graph, source, groups);
    if (name == "lr_scheduler") node = plan.scheduler(writer, file);
    if (node == kNoNode) node = writer.copy_of(file, value);
    const NodeId copied = writer.copy_of(file, key);
    graph.mutable_dict_items(root).emplace_back(copied, node);
  }
  add_what_older_ones_lack(graph, root, source, shapes_node(graph, source, groups));
  return root;
}

}  // namespace zeromuon::convert
