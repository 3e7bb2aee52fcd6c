#include <algorithm>
#include <cstring>

#include "csrc/formats/format_error.h"
#include "csrc/formats/pickle.h"

namespace zeromuon::formats {
namespace {

constexpr int kMaxDepth = 500;

class Writer {
 public:
  Writer(const PickleGraph& graph, const std::string& file)
      : graph_(graph), file_(file), uses_(graph.size(), 0), memo_(graph.size(), kNoNode) {}

  std::vector<uint8_t> write(NodeId root) {
    count_uses(root, 0);
    put<uint8_t>(0x80);
    put<uint8_t>(2);
    node(root);
    put<uint8_t>('.');
    return std::move(out_);
  }

 private:
  template <typename T>
  void put(T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
  }
  void put(std::string_view text) { out_.insert(out_.end(), text.begin(), text.end()); }

  // What is met more than once goes into the memo.
  void count_uses(NodeId node, int depth) {
    if (depth > kMaxDepth) {
      throw_format_error(file_, -1, concat("at most ", kMaxDepth, " nested values"), "more",
                         "a value contains itself, or is nested too deeply to be written");
    }
    if (++uses_[node] > 1) return;
    graph_.each_child(node, [&](NodeId child) { count_uses(child, depth + 1); });
  }

  void remember(NodeId node) {
    if (uses_[node] < 2) return;
    memo_[node] = memo_count_++;
    at_memo('q', 'r', memo_[node]);
  }

  // An opcode for small or for large indices, and the index.
  void at_memo(uint8_t near, uint8_t far, uint32_t index) {
    put<uint8_t>(index < 256 ? near : far);
    index < 256 ? put<uint8_t>(static_cast<uint8_t>(index)) : put<uint32_t>(index);
  }

  void integer(int64_t value) {
    if (value >= 0 && value < 256) {
      put<uint8_t>('K');
      put<uint8_t>(static_cast<uint8_t>(value));
    } else if (value == static_cast<int32_t>(value)) {
      put<uint8_t>('J');
      put<int32_t>(static_cast<int32_t>(value));
    } else {
      put<uint8_t>(0x8a);
      put<uint8_t>(8);
      put<int64_t>(value);
    }
  }

  void real(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    put<uint8_t>('G');
    put<uint64_t>(__builtin_bswap64(bits));
  }

  void text(NodeId node) {
    const std::string_view bytes = graph_.as_text(node);
    const NodeKind kind = graph_.kind(node);
    if (kind == NodeKind::kByteArray) {
      put<uint8_t>(0x96);
      put<uint64_t>(bytes.size());
    } else {
      put<uint8_t>(kind == NodeKind::kString ? 'X' : kind == NodeKind::kBytes ? 'B' : 0x8b);
      put<uint32_t>(static_cast<uint32_t>(bytes.size()));
    }
    put(bytes);
  }

  void pairs(const std::vector<std::pair<NodeId, NodeId>>& items) {
    if (items.empty()) return;
    put<uint8_t>('(');
    for (const auto& [key, value] : items) {
      node(key);
      node(value);
    }
    put<uint8_t>('u');
  }

  void all(const std::vector<NodeId>& items, uint8_t close) {
    put<uint8_t>('(');
    for (const NodeId item : items) node(item);
    put<uint8_t>(close);
  }

  void call(NodeId id) {
    const Call& call = *graph_.as_call(id);
    node(call.callable);
    node(call.arguments);
    if (call.keywords != kNoNode) node(call.keywords);
    constexpr uint8_t kOpcodes[] = {'R', 0x81, 0x92};
    put<uint8_t>(kOpcodes[static_cast<int>(call.kind)]);
    remember(id);
    if (!call.appended.empty()) all(call.appended, 'e');
    pairs(call.set_items);
    if (call.state == kNoNode) return;
    node(call.state);
    put<uint8_t>('b');
  }

  void tuple(NodeId id) {
    const auto& items = graph_.items(id);
    if (items.empty()) {
      put<uint8_t>(')');
    } else if (items.size() <= 3) {
      for (const NodeId item : items) node(item);
      put<uint8_t>(static_cast<uint8_t>(0x84 + items.size()));
    } else {
      all(items, 't');
    }
    remember(id);
  }

  void global(NodeId id) {
    put<uint8_t>('c');
    graph_.each_child(id, [&](NodeId part) {
      put(graph_.as_text(part));
      put<uint8_t>('\n');
    });
    remember(id);
  }

  // Written before what it holds, which may be put in later.
  void container(NodeId id, uint8_t open, uint8_t close) {
    put<uint8_t>(open);
    remember(id);
    if (!graph_.items(id).empty()) all(graph_.items(id), close);
  }

  void node(NodeId id) {
    if (memo_[id] != kNoNode) {
      return at_memo('h', 'j', memo_[id]);
    }
    switch (graph_.kind(id)) {
      case NodeKind::kNone:
        return put<uint8_t>('N');
      case NodeKind::kBool:
        return put<uint8_t>(graph_.as_bool(id, false) ? 0x88 : 0x89);
      case NodeKind::kInt:
        return integer(graph_.as_int(id, 0));
      case NodeKind::kFloat:
        return real(graph_.as_real(id, 0));
      case NodeKind::kTuple:
        return tuple(id);
      case NodeKind::kList:
        return container(id, ']', 'e');
      case NodeKind::kSet:
        return container(id, 0x8f, 0x90);
      case NodeKind::kFrozenSet:
        all(graph_.items(id), 0x91);
        return remember(id);
      case NodeKind::kDict:
        put<uint8_t>('}');
        remember(id);
        return pairs(graph_.dict_items(id));
      case NodeKind::kGlobal:
        return global(id);
      case NodeKind::kCall:
        return call(id);
      case NodeKind::kPersistent:
        node(graph_.persistent_id(id));
        put<uint8_t>('Q');
        return remember(id);
      default:
        text(id);
        remember(id);
    }
  }

  const PickleGraph& graph_;
  const std::string& file_;
  std::vector<uint32_t> uses_;
  std::vector<uint32_t> memo_;
  uint32_t memo_count_ = 0;
  std::vector<uint8_t> out_;
};

}  // namespace

std::vector<uint8_t> write_pickle(const PickleGraph& graph, NodeId root, const std::string& file) {
  return Writer(graph, file).write(root);
}

}  // namespace zeromuon::formats
