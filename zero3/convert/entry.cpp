#include "zero3/convert/entry.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

constexpr const char* kOther = "take the zeromuon that wrote it, or a later one";

bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

void check(const TorchFile& file, NodeId entry) {
  const PickleGraph& graph = file.graph();
  const NodeId format = graph.get(entry, "format"), needs = graph.get(entry, "needs");
  if (graph.as_int(format, -1) != kEntrySchema.format) {
    refuse(file.path(), concat("a ZeroMuon state of format ", kEntrySchema.format),
           format == kNoNode ? "none" : "format " + graph.describe(format, 20), kOther);
  }
  for (const NodeId need : graph.items(needs)) {
    if (contains(kEntrySchema.needs, graph.as_text(need))) continue;
    refuse(file.path(), "a ZeroMuon state with needs that this version knows",
           graph.describe(need, 60), kOther);
  }
}

EntrySchema read_schema() {
  const auto schema = nlohmann::json::parse(
#include <entry_schema.inc>  // made by CMakeLists.txt
  );
  EntrySchema out{
      schema.at("key"), schema.at("format"), schema.at("marker"), schema.at("needs"), {}};
  for (const auto& field : schema.at("fields").items()) out.fields.push_back(field.key());
  return out;
}

}  // namespace

const EntrySchema kEntrySchema = read_schema();

NodeId find_entry(const TorchFile& file, NodeId state_dict) {
  const PickleGraph& graph = file.graph();
  NodeId entry = graph.get(state_dict, kEntrySchema.key);
  const NodeId groups = graph.get(state_dict, "param_groups");
  if (entry == kNoNode && !graph.items(groups).empty()) {
    entry = graph.get(graph.items(groups)[0], kEntrySchema.key);
  }
  if (entry != kNoNode) check(file, entry);
  return entry;
}

bool needs(const TorchFile& file, NodeId entry, std::string_view feature) {
  const PickleGraph& graph = file.graph();
  const auto& named = graph.items(graph.get(entry, "needs"));
  return std::any_of(named.begin(), named.end(),
                     [&](NodeId node) { return graph.as_text(node) == feature; });
}

void keep_unknown_fields(TorchFileWriter& writer, const TorchFile& file, NodeId from, NodeId to) {
  const PickleGraph& graph = file.graph();
  for (const auto& [key, value] : graph.dict_items(from)) {
    if (contains(kEntrySchema.fields, graph.as_text(key))) continue;
    const NodeId name = writer.copy_of(file, key), copied = writer.copy_of(file, value);
    writer.graph().mutable_dict_items(to).emplace_back(name, copied);
  }
}

}  // namespace zeromuon::convert
