// Pickle nodes for people.
#include <sstream>

#include "csrc/formats/pickle_graph.h"

namespace zeromuon::formats {
namespace {

constexpr int kMaxDescribedDepth = 32;

void quote(std::string_view text, size_t limit, std::string& out) {
  out += '\'';
  for (const char c : text) {
    if (out.size() > limit) break;
    if (c == '\'' || c == '\\') out += '\\';
    out += static_cast<uint8_t>(c) < 0x20 ? '?' : c;
  }
  out += '\'';
}

// The last place up to `at` that cuts no UTF-8 character.
size_t before_character(std::string_view text, size_t at) {
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

std::string number(double value) {
  std::ostringstream out;
  out.precision(12);
  out << value;
  return out.str();
}

}  // namespace

// What a node without others in it says.
std::string PickleGraph::describe_leaf(NodeId node) const {
  switch (kind(node)) {
    case NodeKind::kNone:
      return "None";
    case NodeKind::kBool:
      return as_bool(node, false) ? "True" : "False";
    case NodeKind::kInt:
      return std::to_string(as_int(node, 0));
    case NodeKind::kBigInt:
      return "<a large integer>";
    case NodeKind::kFloat:
      return number(as_real(node, 0));
    case NodeKind::kGlobal:
      return global_name(node);
    case NodeKind::kPersistent:
      return "<storage>";
    default:
      return "<" + std::to_string(as_text(node).size()) + " bytes>";
  }
}

void PickleGraph::describe_into(NodeId node, size_t limit, int depth, std::string& out) const {
  if (out.size() > limit) return;
  if (depth > kMaxDescribedDepth) {
    out += "...";
    return;
  }
  const auto inner = [&](NodeId child) { describe_into(child, limit, depth + 1, out); };
  const auto list = [&](const char* begin, const auto& children, const char* end,
                        const auto& describe_child) {
    out += begin;
    for (size_t i = 0; i < children.size() && out.size() <= limit; ++i) {
      if (i > 0) out += ", ";
      describe_child(children[i]);
    }
    out += end;
  };
  const auto pair = [&](const std::pair<NodeId, NodeId>& item) {
    inner(item.first);
    out += ": ";
    inner(item.second);
  };
  switch (kind(node)) {
    case NodeKind::kString:
      return quote(as_text(node), limit, out);
    case NodeKind::kTuple:
      return list("(", items(node), items(node).size() == 1 ? ",)" : ")", inner);
    case NodeKind::kList:
      return list("[", items(node), "]", inner);
    case NodeKind::kSet:
    case NodeKind::kFrozenSet:
      return list("{", items(node), "}", inner);
    case NodeKind::kDict:
      return list("{", dict_items(node), "}", pair);
    case NodeKind::kCall: {
      const Call& call = *as_call(node);
      inner(call.callable);
      inner(call.arguments);
      if (!call.set_items.empty()) list("{", call.set_items, "}", pair);
      if (!call.appended.empty()) list("[", call.appended, "]", inner);
      if (call.state != kNoNode) inner(call.state);
      return;
    }
    default:
      out += describe_leaf(node);
  }
}

std::string PickleGraph::describe(NodeId node, size_t limit) const {
  std::string out;
  describe_into(node, limit, 0, out);
  if (out.size() > limit) out = out.substr(0, before_character(out, limit)) + "...";
  return out;
}

}  // namespace zeromuon::formats
