// What a pickle says, as data: a graph of nodes. Nothing in it is imported or called.
//
// A call that the pickle asks for (REDUCE, NEWOBJ) is a kCall node: what would be called, with
// what, and what would be put into the result. Known ones get a meaning where they are read
// (csrc/formats/torch_file.h, dict_items()); unknown ones stay as they are, can be printed, and are
// written back unchanged.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zeromuon::formats {

using NodeId = uint32_t;
constexpr NodeId kNoNode = UINT32_MAX;

enum class NodeKind : uint8_t {
  kNone,
  kBool,
  kInt,
  kBigInt,
  kFloat,
  kString,
  kBytes,
  kByteArray,
  kTuple,
  kList,
  kDict,
  kSet,
  kFrozenSet,
  kGlobal,      // module and name
  kCall,        // callable(*arguments), and what is put into it
  kPersistent,  // a persistent id: a storage in torch's files
};

// How the call was written, so that it can be written back.
enum class CallKind : uint8_t { kReduce, kNewObject, kNewObjectEx };

struct Call {
  CallKind kind = CallKind::kReduce;
  NodeId callable = kNoNode, arguments = kNoNode, keywords = kNoNode;
  NodeId state = kNoNode;                            // BUILD
  std::vector<NodeId> appended;                      // APPEND(S), ADDITEMS
  std::vector<std::pair<NodeId, NodeId>> set_items;  // SETITEM(S)
};

// Nodes are named by number and shared by it: a value that the pickle repeats by its memo is one
// node. Text lies in one buffer, and what is empty takes a node only. No growth copies nodes.
// Thread: one at a time while it is changed; any afterwards.
class PickleGraph {
 public:
  PickleGraph();

  // What get() does not find reads as None everywhere.
  NodeKind kind(NodeId node) const {
    return node == kNoNode ? NodeKind::kNone : nodes_.at(node).kind;
  }
  size_t size() const { return nodes_.size(); }
  // Of memory, what the nodes and all that they hold take.
  uint64_t bytes() const { return bytes_; }
  void expect_text(uint64_t bytes) { text_.reserve(bytes); }
  NodeId root() const { return root_; }
  void set_root(NodeId node) { root_ = node; }

  // ---- making nodes
  NodeId none() const { return 0; }
  NodeId boolean(bool value) const { return value ? 2 : 1; }
  NodeId integer(int64_t value);
  NodeId real(double value);
  NodeId text(NodeKind kind, std::string_view bytes);  // kString, kBytes, kByteArray, kBigInt
  NodeId string(std::string_view value) { return text(NodeKind::kString, value); }
  NodeId sequence(NodeKind kind, std::vector<NodeId> items = {});  // kTuple, kList, kSet, ...
  NodeId dict(std::vector<std::pair<NodeId, NodeId>> items = {});
  NodeId global(std::string_view module, std::string_view name);
  NodeId call(Call call);
  NodeId persistent(NodeId id);
  NodeId ordered_dict(std::vector<std::pair<NodeId, NodeId>> items = {});
  NodeId size_of_shape(const std::vector<int64_t>& shape);  // torch.Size

  // ---- reading nodes; each returns a default when the node is of another kind
  bool is_none(NodeId node) const { return kind(node) == NodeKind::kNone; }
  bool as_bool(NodeId node, bool otherwise) const;
  int64_t as_int(NodeId node, int64_t otherwise) const;  // also a bool
  double as_real(NodeId node, double otherwise) const;   // also an int
  std::string_view as_text(NodeId node) const;           // of every kind made by text()
  // "module.name" of a kGlobal, else "".
  std::string global_name(NodeId node) const;
  // The items of a tuple, list or set; none for other kinds.
  const std::vector<NodeId>& items(NodeId node) const;
  // Adds to a list, a set or a call; none for other kinds.
  void append(NodeId node, const std::vector<NodeId>& values);
  // Adds keys and values, one after the other, to a dict or a call.
  void append_pairs(NodeId node, const std::vector<NodeId>& flat);
  // Key and value pairs of a dict, an OrderedDict or a defaultdict; none for other kinds.
  const std::vector<std::pair<NodeId, NodeId>>& dict_items(NodeId node) const;
  std::vector<std::pair<NodeId, NodeId>>& mutable_dict_items(NodeId node);
  bool is_dict(NodeId node) const;
  const Call* as_call(NodeId node) const;  // null for other kinds
  Call* mutable_call(NodeId node);
  NodeId persistent_id(NodeId node) const;
  // "module.name" of what a kCall would call, else "".
  std::string callable_name(NodeId node) const;

  // The value of a string (or integer) key in a dict; kNoNode when absent. The last one of several
  // wins, as in Python.
  NodeId get(NodeId dict, std::string_view key) const;
  NodeId get(NodeId dict, int64_t key) const;
  void set(NodeId dict, std::string_view key, NodeId value);
  bool erase(NodeId dict, std::string_view key);
  // dict["a"]["b"]...; kNoNode when one is absent.
  NodeId find(NodeId dict, std::initializer_list<std::string_view> keys) const;
  // The numbers of a torch.Size, tuple or list of non-negative integers. False when it is none.
  bool as_shape(NodeId node, std::vector<int64_t>& out) const;

  // What a node says, for people; at most `limit` characters and 32 levels.
  std::string describe(NodeId node, size_t limit = 200) const;

  // Calls visit(child) for every node that `node` holds, in the order of a pickle.
  template <typename Visit>
  void each_child(NodeId node, const Visit& visit) const;

  // The largest nesting below the root. Raises FormatError (naming `file`) beyond `limit`, and for
  // a node that contains itself.
  int check_depth(const std::string& file, int limit) const;

 private:
  struct Node {
    NodeKind kind = NodeKind::kNone;
    uint32_t length = 0;  // of text
    union {
      int64_t integer;
      double real;
      uint64_t index;  // into text_, sequences_, dicts_ or calls_; kEmpty
    };
  };
  static constexpr uint64_t kEmpty = UINT64_MAX;  // a sequence or dict without an entry there
  using Items = std::vector<NodeId>;
  using Pairs = std::vector<std::pair<NodeId, NodeId>>;

  bool is_key(NodeId node, std::string_view key) const;
  NodeId add(NodeKind kind, uint64_t index, uint32_t length = 0);
  std::string describe_leaf(NodeId node) const;
  void describe_into(NodeId node, size_t limit, int depth, std::string& out) const;

  template <typename T>
  void grow(std::vector<T>& list, size_t by);
  int depth_below(NodeId node, int level, int limit, const std::string& file,
                  std::vector<uint16_t>& depths) const;

  std::deque<Node> nodes_;
  std::string text_;
  std::deque<Items> sequences_;
  std::deque<Pairs> dicts_;
  std::deque<Call> calls_;
  uint64_t bytes_ = 0;
  NodeId root_ = 0;
};

// Copies nodes of one graph into another; what was copied before is shared.
// Thread: one at a time.
class PickleCopier {
 public:
  // replace: called for every node before it is copied; what it returns is taken instead, unless it
  // is kNoNode.
  using Replace = std::function<NodeId(NodeId)>;

  PickleCopier(const PickleGraph& from, PickleGraph& to, Replace replace = {});
  NodeId copy(NodeId node);
  // From now on `copied` stands for `node`.
  void record(NodeId node, NodeId copied) { copies_.at(node) = copied; }

 private:
  NodeId copy_new(NodeId node);
  std::vector<NodeId> copy_all(const std::vector<NodeId>& nodes);
  std::vector<std::pair<NodeId, NodeId>> copy_all(
      const std::vector<std::pair<NodeId, NodeId>>& pairs);

  const PickleGraph& from_;
  PickleGraph& to_;
  Replace replace_;
  std::vector<NodeId> copies_;
};

template <typename Visit>
void PickleGraph::each_child(NodeId node, const Visit& visit) const {
  const Node& n = nodes_.at(node);
  switch (n.kind) {
    case NodeKind::kTuple:
    case NodeKind::kList:
    case NodeKind::kSet:
    case NodeKind::kFrozenSet:
    case NodeKind::kGlobal:
    case NodeKind::kPersistent:
      if (n.index == kEmpty) return;
      for (const NodeId child : sequences_[n.index]) visit(child);
      return;
    case NodeKind::kDict:
      if (n.index == kEmpty) return;
      for (const auto& [key, value] : dicts_[n.index]) visit(key), visit(value);
      return;
    case NodeKind::kCall: {
      const Call& call = calls_[n.index];
      visit(call.callable);
      visit(call.arguments);
      if (call.keywords != kNoNode) visit(call.keywords);
      for (const NodeId child : call.appended) visit(child);
      for (const auto& [key, value] : call.set_items) visit(key), visit(value);
      if (call.state != kNoNode) visit(call.state);
      return;
    }
    default:
      return;
  }
}

}  // namespace zeromuon::formats
