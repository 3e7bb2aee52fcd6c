#include "csrc/formats/pickle_graph.h"

#include <algorithm>
#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {
namespace {

constexpr uint16_t kUnknownDepth = UINT16_MAX, kOpenDepth = UINT16_MAX - 1;
constexpr uint64_t kAllocation = 16;  // what the C library adds to one

const std::vector<NodeId> kNoItems;
const std::vector<std::pair<NodeId, NodeId>> kNoPairs;

bool is_text(NodeKind kind) {
  return kind == NodeKind::kString || kind == NodeKind::kBytes || kind == NodeKind::kByteArray ||
         kind == NodeKind::kBigInt;
}

bool is_sequence(NodeKind kind) {
  return kind == NodeKind::kTuple || kind == NodeKind::kList || kind == NodeKind::kSet ||
         kind == NodeKind::kFrozenSet;
}

}  // namespace

PickleGraph::PickleGraph() {
  add(NodeKind::kNone, 0);
  add(NodeKind::kBool, 0);
  add(NodeKind::kBool, 1);
}

NodeId PickleGraph::add(NodeKind kind, uint64_t index, uint32_t length) {
  invariant(nodes_.size() < kNoNode, "too many pickle nodes");
  Node node;
  node.kind = kind;
  node.length = length;
  node.index = index;
  nodes_.push_back(node);
  bytes_ += sizeof node + length;
  return static_cast<NodeId>(nodes_.size() - 1);
}

NodeId PickleGraph::integer(int64_t value) {
  return add(NodeKind::kInt, static_cast<uint64_t>(value));
}

NodeId PickleGraph::real(double value) {
  const NodeId node = add(NodeKind::kFloat, 0);
  nodes_[node].real = value;
  return node;
}

NodeId PickleGraph::text(NodeKind kind, std::string_view bytes) {
  invariant(is_text(kind) && bytes.size() < UINT32_MAX, "pickle text of ", bytes.size(), " bytes");
  text_ += bytes;
  return add(kind, text_.size() - bytes.size(), static_cast<uint32_t>(bytes.size()));
}

NodeId PickleGraph::sequence(NodeKind kind, std::vector<NodeId> items) {
  if (items.empty()) return add(kind, kEmpty);
  bytes_ += sizeof items + kAllocation + items.capacity() * sizeof items[0];
  sequences_.push_back(std::move(items));
  return add(kind, sequences_.size() - 1);
}

NodeId PickleGraph::dict(std::vector<std::pair<NodeId, NodeId>> items) {
  if (items.empty()) return add(NodeKind::kDict, kEmpty);
  bytes_ += sizeof items + kAllocation + items.capacity() * sizeof items[0];
  dicts_.push_back(std::move(items));
  return add(NodeKind::kDict, dicts_.size() - 1);
}

NodeId PickleGraph::global(std::string_view module, std::string_view name) {
  const NodeId first = string(module), second = string(name);
  return sequence(NodeKind::kGlobal, {first, second});
}

NodeId PickleGraph::call(Call call) {
  bytes_ += sizeof call + call.set_items.capacity() * sizeof call.set_items[0];
  calls_.push_back(std::move(call));
  return add(NodeKind::kCall, calls_.size() - 1);
}

NodeId PickleGraph::persistent(NodeId id) { return sequence(NodeKind::kPersistent, {id}); }

NodeId PickleGraph::ordered_dict(std::vector<std::pair<NodeId, NodeId>> items) {
  Call made;
  made.callable = global("collections", "OrderedDict");
  made.arguments = sequence(NodeKind::kTuple);
  made.set_items = std::move(items);
  return call(std::move(made));
}

NodeId PickleGraph::size_of_shape(const std::vector<int64_t>& shape) {
  std::vector<NodeId> sizes;
  for (const int64_t size : shape) sizes.push_back(integer(size));
  Call made;
  made.callable = global("torch", "Size");
  const NodeId tuple = sequence(NodeKind::kTuple, std::move(sizes));
  made.arguments = sequence(NodeKind::kTuple, {tuple});
  return call(std::move(made));
}

bool PickleGraph::as_bool(NodeId node, bool otherwise) const {
  return kind(node) == NodeKind::kBool ? nodes_[node].integer != 0 : otherwise;
}

int64_t PickleGraph::as_int(NodeId node, int64_t otherwise) const {
  const bool fits = kind(node) == NodeKind::kInt || kind(node) == NodeKind::kBool;
  return fits ? nodes_[node].integer : otherwise;
}

double PickleGraph::as_real(NodeId node, double otherwise) const {
  if (kind(node) == NodeKind::kFloat) return nodes_[node].real;
  return kind(node) == NodeKind::kInt ? static_cast<double>(nodes_[node].integer) : otherwise;
}

std::string_view PickleGraph::as_text(NodeId node) const {
  if (!is_text(kind(node))) return {};
  return std::string_view(text_).substr(nodes_[node].index, nodes_[node].length);
}

std::string PickleGraph::global_name(NodeId node) const {
  if (kind(node) != NodeKind::kGlobal) return {};
  const auto& parts = sequences_[nodes_[node].index];
  return std::string(as_text(parts[0])) + "." + std::string(as_text(parts[1]));
}

const std::vector<NodeId>& PickleGraph::items(NodeId node) const {
  if (!is_sequence(kind(node)) || nodes_[node].index == kEmpty) return kNoItems;
  return sequences_[nodes_[node].index];
}

template <typename T>
void PickleGraph::grow(std::vector<T>& list, size_t by) {
  const size_t before = list.capacity();
  if (before == 0) bytes_ += kAllocation;
  if (list.size() + by > before) list.reserve(std::max(list.size() + by, before + before / 2));
  bytes_ += (list.capacity() - before) * sizeof(T);
}

void PickleGraph::append(NodeId node, const std::vector<NodeId>& values) {
  if (values.empty()) return;
  Call* const call = mutable_call(node);
  invariant(call != nullptr || is_sequence(kind(node)), "pickle node ", node, " is no sequence");
  if (call == nullptr && nodes_[node].index == kEmpty) {
    nodes_[node].index = sequences_.size();
    sequences_.emplace_back();
    bytes_ += sizeof(Items);
  }
  Items& items = call != nullptr ? call->appended : sequences_[nodes_[node].index];
  grow(items, values.size());
  items.insert(items.end(), values.begin(), values.end());
}

void PickleGraph::append_pairs(NodeId node, const std::vector<NodeId>& flat) {
  if (flat.empty()) return;
  Call* const call = mutable_call(node);
  Pairs& pairs = call != nullptr ? call->set_items : mutable_dict_items(node);
  grow(pairs, flat.size() / 2);
  for (size_t i = 0; i + 1 < flat.size(); i += 2) pairs.emplace_back(flat[i], flat[i + 1]);
}

bool PickleGraph::is_dict(NodeId node) const {
  if (kind(node) == NodeKind::kDict) return true;
  const std::string name = callable_name(node);
  return name == "collections.OrderedDict" || name == "collections.defaultdict";
}

const std::vector<std::pair<NodeId, NodeId>>& PickleGraph::dict_items(NodeId node) const {
  if (kind(node) == NodeKind::kDict) {
    return nodes_[node].index == kEmpty ? kNoPairs : dicts_[nodes_[node].index];
  }
  return is_dict(node) ? calls_[nodes_[node].index].set_items : kNoPairs;
}

std::vector<std::pair<NodeId, NodeId>>& PickleGraph::mutable_dict_items(NodeId node) {
  invariant(is_dict(node), "pickle node ", node, " is no dict");
  if (kind(node) != NodeKind::kDict) return calls_[nodes_[node].index].set_items;
  if (nodes_[node].index == kEmpty) {
    nodes_[node].index = dicts_.size();
    dicts_.emplace_back();
    bytes_ += sizeof(Pairs);
  }
  return dicts_[nodes_[node].index];
}

const Call* PickleGraph::as_call(NodeId node) const {
  return kind(node) == NodeKind::kCall ? &calls_[nodes_[node].index] : nullptr;
}

Call* PickleGraph::mutable_call(NodeId node) {
  return kind(node) == NodeKind::kCall ? &calls_[nodes_[node].index] : nullptr;
}

NodeId PickleGraph::persistent_id(NodeId node) const {
  return kind(node) == NodeKind::kPersistent ? sequences_[nodes_[node].index][0] : kNoNode;
}

std::string PickleGraph::callable_name(NodeId node) const {
  const Call* call = as_call(node);
  return call == nullptr ? std::string() : global_name(call->callable);
}

bool PickleGraph::is_key(NodeId node, std::string_view key) const {
  return kind(node) == NodeKind::kString && as_text(node) == key;
}

NodeId PickleGraph::get(NodeId dict, std::string_view key) const {
  NodeId found = kNoNode;
  for (const auto& [k, value] : dict_items(dict)) {
    if (is_key(k, key)) found = value;
  }
  return found;
}

NodeId PickleGraph::get(NodeId dict, int64_t key) const {
  NodeId found = kNoNode;
  for (const auto& [k, value] : dict_items(dict)) {
    if (kind(k) == NodeKind::kInt && nodes_[k].integer == key) found = value;
  }
  return found;
}

void PickleGraph::set(NodeId dict, std::string_view key, NodeId value) {
  for (auto& [k, old] : mutable_dict_items(dict)) {
    if (!is_key(k, key)) continue;
    old = value;
    return;
  }
  const NodeId text = string(key);
  mutable_dict_items(dict).emplace_back(text, value);
}

bool PickleGraph::erase(NodeId dict, std::string_view key) {
  return std::erase_if(mutable_dict_items(dict),
                       [&](const auto& pair) { return is_key(pair.first, key); }) > 0;
}

NodeId PickleGraph::find(NodeId dict, std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys) dict = get(dict, key);
  return dict;
}

bool PickleGraph::as_shape(NodeId node, std::vector<int64_t>& out) const {
  if (callable_name(node) == "torch.Size") {
    const auto& arguments = items(as_call(node)->arguments);
    if (arguments.size() != 1) return false;
    node = arguments[0];
  }
  if (kind(node) != NodeKind::kTuple && kind(node) != NodeKind::kList) return false;
  constexpr size_t kMaxDimensions = 64;  // torch's own limit
  if (items(node).size() > kMaxDimensions) return false;
  out.clear();
  for (const NodeId item : items(node)) {
    if (kind(item) != NodeKind::kInt || nodes_[item].integer < 0) return false;
    out.push_back(nodes_[item].integer);
  }
  return true;
}

int PickleGraph::check_depth(const std::string& file, int limit) const {
  std::vector<uint16_t> depths(nodes_.size(), kUnknownDepth);
  return depth_below(root_, 0, limit, file, depths);
}

// depths: of the nodes that were visited. level: nodes above.
int PickleGraph::depth_below(NodeId node, int level, int limit, const std::string& file,
                             std::vector<uint16_t>& depths) const {
  if (depths[node] == kOpenDepth) {
    throw_format_error(file, -1, "values that do not contain themselves",
                       "one that does: " + describe(node, 60),
                       "this is not a checkpoint of DeepSpeed or torch.save");
  }
  if (depths[node] != kUnknownDepth) return depths[node];
  depths[node] = kOpenDepth;
  int deepest = 0;
  if (level <= limit) {
    each_child(node, [&](NodeId child) {
      deepest = std::max(deepest, 1 + depth_below(child, level + 1, limit, file, depths));
    });
  }
  if (level > limit || deepest > limit) {
    throw_format_error(file, -1, concat("at most ", limit, " nested values"), "more",
                       "this is not a checkpoint of DeepSpeed or torch.save");
  }
  depths[node] = static_cast<uint16_t>(deepest);
  return deepest;
}

PickleCopier::PickleCopier(const PickleGraph& from, PickleGraph& to, Replace replace)
    : from_(from), to_(to), replace_(std::move(replace)), copies_(from.size(), kNoNode) {}

NodeId PickleCopier::copy(NodeId node) {
  if (copies_.at(node) != kNoNode) return copies_[node];
  NodeId copied = replace_ ? replace_(node) : kNoNode;
  if (copied == kNoNode) copied = copy_new(node);
  return copies_[node] = copied;
}

std::vector<NodeId> PickleCopier::copy_all(const std::vector<NodeId>& nodes) {
  std::vector<NodeId> out;
  out.reserve(nodes.size());
  for (const NodeId node : nodes) out.push_back(copy(node));
  return out;
}

std::vector<std::pair<NodeId, NodeId>> PickleCopier::copy_all(
    const std::vector<std::pair<NodeId, NodeId>>& pairs) {
  std::vector<std::pair<NodeId, NodeId>> out;
  out.reserve(pairs.size());
  for (const auto& [key, value] : pairs) {
    const NodeId copied = copy(key);
    out.emplace_back(copied, copy(value));
  }
  return out;
}

NodeId PickleCopier::copy_new(NodeId node) {
  const NodeKind kind = from_.kind(node);
  switch (kind) {
    case NodeKind::kNone:
      return to_.none();
    case NodeKind::kBool:
      return to_.boolean(from_.as_bool(node, false));
    case NodeKind::kInt:
      return to_.integer(from_.as_int(node, 0));
    case NodeKind::kFloat:
      return to_.real(from_.as_real(node, 0));
    case NodeKind::kDict:
      return to_.dict(copy_all(from_.dict_items(node)));
    case NodeKind::kPersistent:
      return to_.persistent(copy(from_.persistent_id(node)));
    case NodeKind::kGlobal: {
      std::vector<NodeId> parts;
      from_.each_child(node, [&](NodeId part) { parts.push_back(copy(part)); });
      return to_.sequence(kind, std::move(parts));
    }
    case NodeKind::kCall: {
      Call call = *from_.as_call(node);
      call.callable = copy(call.callable);
      call.arguments = copy(call.arguments);
      if (call.keywords != kNoNode) call.keywords = copy(call.keywords);
      if (call.state != kNoNode) call.state = copy(call.state);
      call.appended = copy_all(call.appended);
      call.set_items = copy_all(call.set_items);
      return to_.call(std::move(call));
    }
    default:
      return is_text(kind) ? to_.text(kind, from_.as_text(node))
                           : to_.sequence(kind, copy_all(from_.items(node)));
  }
}

}  // namespace zeromuon::formats
