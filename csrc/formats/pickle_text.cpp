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

void PickleGraph::describe_into(NodeId node, size_t limit, int depth, std::string& out) const {
  if (out.size() > limit) return;
  if (depth > kMaxDescribedDepth) {
    out += "...";
    return;
  }
  const auto list = [&](const char* begin, const auto& children, const char* end) {
    out += begin;
    for (size_t i = 0; i < children.size() && out.size() <= limit; ++i) {
      if (i > 0) out += ", ";
      describe_into(children[i], limit, depth + 1, out);
    }
    out += end;
  };
  const auto pairs = [&](const Pairs& children) {
    out += "{";
    for (size_t i = 0; i < children.size() && out.size() <= limit; ++i) {
      if (i > 0) out += ", ";
      describe_into(children[i].first, limit, depth + 1, out);
      out += ": ";
      describe_into(children[i].second, limit, depth + 1, out);
    }
    out += "}";
  };
  switch (kind(node)) {
    case NodeKind::kNone:
      out += "None";
      return;
    case NodeKind::kBool:
      out += as_bool(node, false) ? "True" : "False";
      return;
    case NodeKind::kInt:
      out += std::to_string(as_int(node, 0));
      return;
    case NodeKind::kBigInt:
      out += "<a large integer>";
      return;
    case NodeKind::kFloat:
      out += number(as_real(node, 0));
      return;
    case NodeKind::kBytes:
    case NodeKind::kByteArray:
      out += "<" + std::to_string(as_text(node).size()) + " bytes>";
      return;
    case NodeKind::kString:
      quote(as_text(node), limit, out);
      return;
    case NodeKind::kTuple:
      list("(", items(node), items(node).size() == 1 ? ",)" : ")");
      return;
    case NodeKind::kList:
      list("[", items(node), "]");
      return;
    case NodeKind::kSet:
    case NodeKind::kFrozenSet:
      list("{", items(node), "}");
      return;
    case NodeKind::kDict:
      pairs(dict_items(node));
      return;
    case NodeKind::kGlobal:
      out += global_name(node);
      return;
    case NodeKind::kPersistent:
      out += "<storage>";
      return;
    case NodeKind::kCall: {
      const Call& call = *as_call(node);
      describe_into(call.callable, limit, depth + 1, out);
      describe_into(call.arguments, limit, depth + 1, out);
      if (!call.set_items.empty()) pairs(call.set_items);
      if (!call.appended.empty()) list("[", call.appended, "]");
      if (call.state != kNoNode) describe_into(call.state, limit, depth + 1, out);
      return;
    }
  }
}

std::string PickleGraph::describe(NodeId node, size_t limit) const {
  std::string out;
  describe_into(node, limit, 0, out);
  if (out.size() > limit) out = out.substr(0, before_character(out, limit)) + "...";
  return out;
}

}  // namespace zeromuon::formats
