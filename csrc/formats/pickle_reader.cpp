// The pickle machine: a stack, marks and a memo, over nodes instead of objects.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "csrc/formats/format_error.h"
#include "csrc/formats/pickle.h"

namespace zeromuon::formats {
namespace {

constexpr const char* kNotOurs =
    "the file is damaged, or is not a pickle of torch.save or DeepSpeed (protocols 2 to 5)";

// Of memory. One byte can make a node, or a value on the stack; what torch.save and DeepSpeed write
// takes 3 to 10 times its size.
constexpr uint64_t kMemoryPerByte = 20, kLeastMemory = 64 << 10, kMostMemory = 2ull << 30;

class Machine {
 public:
  Machine(const uint8_t* data, uint64_t bytes, const std::string& file, int64_t file_offset)
      : data_(data), bytes_(bytes), file_(file), file_offset_(file_offset) {
    graph_.expect_text(bytes);
  }

  PickleGraph run() {
    const uint64_t limit = std::min(kLeastMemory + kMemoryPerByte * bytes_, kMostMemory);
    while (step(next<uint8_t>("an opcode"))) {
      if (memory() <= limit) continue;
      fail(concat("values that take at most ", limit, " bytes of memory"), "more");
    }
    return std::move(graph_);
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw_format_error(file_, file_offset_ + static_cast<int64_t>(at_), expected, got, kNotOurs);
  }
  void check(bool good, const char* expected, const char* got) const {
    if (!good) fail(expected, got);
  }

  template <typename T>
  T next(const char* what) {
    check(bytes_ - at_ >= sizeof(T), what, "the end of the pickle");
    T value;
    std::memcpy(&value, data_ + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string_view text(uint64_t length) {
    if (length > bytes_ - at_) fail(concat(length, " bytes of text"), concat(bytes_ - at_));
    const std::string_view out(reinterpret_cast<const char*>(data_) + at_, length);
    at_ += length;
    return out;
  }

  std::string_view line() {
    const void* end = std::memchr(data_ + at_, '\n', bytes_ - at_);
    check(end != nullptr, "a line", "no end of it");
    const auto length = static_cast<const uint8_t*>(end) - (data_ + at_);
    const std::string_view out = text(static_cast<uint64_t>(length));
    ++at_;
    return out;
  }

  uint64_t memory() const {
    return graph_.bytes() +
           sizeof(NodeId) * (stack_.capacity() + memo_.capacity() + marks_.capacity());
  }

  void push(NodeId node) { stack_.push_back(node); }

  template <typename Length>
  void push_text(NodeKind kind) {
    push(graph_.text(kind, text(next<Length>("a length"))));
  }

  NodeId pop() {
    const NodeId node = top();
    stack_.pop_back();
    return node;
  }

  NodeId& top() {
    check(stack_.size() > floor(), "a value on the stack", "none");
    return stack_.back();
  }

  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  // Takes what was pushed since the last mark.
  std::vector<NodeId> pop_to_mark() {
    check(!marks_.empty(), "a mark", "none");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<NodeId> out(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return out;
  }

  std::vector<NodeId> pop_some(size_t count) {
    check(stack_.size() - floor() >= count, "values on the stack", "too few");
    std::vector<NodeId> out(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return out;
  }

  // Picklers number their memo in order, so an index is below the number of opcodes.
  void put(uint64_t index) {
    check(index < bytes_, "a memo index in order", "a far one");
    if (index >= memo_.size()) memo_.resize(index + 1, kNoNode);
    memo_[index] = top();
    memo_count_ = std::max(memo_count_, index + 1);
  }

  void get(uint64_t index) {
    check(index < memo_.size() && memo_[index] != kNoNode, "a memo index that was set",
          "another one");
    push(memo_[index]);
  }

  void push_global(std::string_view module, std::string_view name) {
    for (const char c : concat(module, name)) {
      check(static_cast<uint8_t>(c) >= 0x20, "the name of a global", "control characters");
    }
    push(graph_.global(module, name));
  }

  void inline_global() {
    const std::string_view module = line();
    push_global(module, line());
  }

  void stack_global() {
    const NodeId name = pop(), module = pop();
    check(graph_.kind(name) == NodeKind::kString && graph_.kind(module) == NodeKind::kString,
          "two strings that name a global", "other values");
    push_global(std::string(graph_.as_text(module)), std::string(graph_.as_text(name)));
  }

  void push_call(CallKind kind, bool keywords) {
    Call call;
    call.kind = kind;
    if (keywords) call.keywords = pop();
    call.arguments = pop();
    call.callable = pop();
    check(graph_.kind(call.arguments) == NodeKind::kTuple, "a tuple of arguments", "another value");
    push(graph_.call(std::move(call)));
  }

  void build() {
    const NodeId state = pop();
    Call* call = graph_.mutable_call(top());
    check(call != nullptr && call->state == kNoNode, "an object that takes a state",
          "another value, or a second state");
    call->state = state;
  }

  void append(const std::vector<NodeId>& values) {
    const NodeKind kind = graph_.kind(top());
    check(kind == NodeKind::kList || kind == NodeKind::kCall, "a list to append to",
          "another value");
    graph_.append(top(), values);
  }

  void add_to_set(const std::vector<NodeId>& values) {
    check(graph_.kind(top()) == NodeKind::kSet, "a set to add to", "another value");
    graph_.append(top(), values);
  }

  void set_items(const std::vector<NodeId>& flat) {
    check(flat.size() % 2 == 0, "keys and values", "a key without value");
    const NodeKind kind = graph_.kind(top());
    check(kind == NodeKind::kDict || kind == NodeKind::kCall, "a dict to put items into",
          "another value");
    graph_.append_pairs(top(), flat);
  }

  void dict_to_mark() {
    const std::vector<NodeId> items = pop_to_mark();
    push(graph_.dict());
    set_items(items);
  }

  void check_protocol() {
    const auto protocol = next<uint8_t>("a protocol");
    if (protocol < 2 || protocol > 5) fail("protocol 2 to 5", concat(int{protocol}));
  }

  void check_frame() {
    check(next<uint64_t>("a frame") <= bytes_ - at_, "a frame inside the pickle", "a longer one");
  }

  void drop() { stack_.size() > floor() ? stack_.pop_back() : void(pop_to_mark()); }

  void mark() { marks_.push_back(static_cast<uint32_t>(stack_.size())); }

  NodeId big_endian_real() {
    const auto bits = __builtin_bswap64(next<uint64_t>("a float"));
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return graph_.real(value);
  }

  // Little-endian two's complement; what fits 64 bits becomes a plain integer.
  NodeId long_integer(uint64_t length) {
    const std::string_view digits = text(length);
    if (length > 8) return graph_.text(NodeKind::kBigInt, digits);
    uint64_t value = length > 0 && (digits.back() & 0x80) != 0 ? ~uint64_t{0} : 0;
    std::memcpy(&value, digits.data(), length);
    return graph_.integer(static_cast<int64_t>(value));
  }

  // False after the last one.
  bool step(uint8_t opcode) {
    if (opcode == '.') {
      graph_.set_root(pop());
      check(stack_.empty() && marks_.empty(), "one value at the end", "more values");
      check(at_ == bytes_, "the end of the pickle", "more bytes");
      return false;
    }
    static const auto kSteps = steps_by_opcode();
    if (kSteps[opcode] == nullptr) {
      --at_;
      fail("an opcode of protocols 2 to 5", concat("byte ", static_cast<int>(opcode)));
    }
    kSteps[opcode](*this);
    return true;
  }

  using Step = void (*)(Machine&);
  struct Opcode {
    uint8_t code;
    Step step;
  };
  static const Opcode kOpcodes[];
  static std::array<Step, 256> steps_by_opcode();

  const uint8_t* data_;
  uint64_t bytes_, at_ = 0;
  const std::string& file_;
  int64_t file_offset_;
  PickleGraph graph_;
  std::vector<NodeId> stack_, memo_;
  std::vector<uint32_t> marks_;  // sizes of the stack
  uint64_t memo_count_ = 0;
};

const Machine::Opcode Machine::kOpcodes[] = {
    // Values, without a look at the stack. 'T' and 'U' are strings of Python 2, which torch decodes
    // as UTF-8.
    {'N', [](Machine& m) { m.push(m.graph_.none()); }},
    {0x88, [](Machine& m) { m.push(m.graph_.boolean(true)); }},
    {0x89, [](Machine& m) { m.push(m.graph_.boolean(false)); }},
    {'J', [](Machine& m) { m.push(m.graph_.integer(m.next<int32_t>("an integer"))); }},
    {'K', [](Machine& m) { m.push(m.graph_.integer(m.next<uint8_t>("an integer"))); }},
    {'M', [](Machine& m) { m.push(m.graph_.integer(m.next<uint16_t>("an integer"))); }},
    {0x8a, [](Machine& m) { m.push(m.long_integer(m.next<uint8_t>("a length"))); }},
    {0x8b, [](Machine& m) { m.push(m.long_integer(m.next<uint32_t>("a length"))); }},
    {'G', [](Machine& m) { m.push(m.big_endian_real()); }},
    {'X', [](Machine& m) { m.push_text<uint32_t>(NodeKind::kString); }},
    {0x8c, [](Machine& m) { m.push_text<uint8_t>(NodeKind::kString); }},
    {0x8d, [](Machine& m) { m.push_text<uint64_t>(NodeKind::kString); }},
    {'T', [](Machine& m) { m.push_text<uint32_t>(NodeKind::kString); }},
    {'U', [](Machine& m) { m.push_text<uint8_t>(NodeKind::kString); }},
    {'B', [](Machine& m) { m.push_text<uint32_t>(NodeKind::kBytes); }},
    {'C', [](Machine& m) { m.push_text<uint8_t>(NodeKind::kBytes); }},
    {0x8e, [](Machine& m) { m.push_text<uint64_t>(NodeKind::kBytes); }},
    {0x96, [](Machine& m) { m.push_text<uint64_t>(NodeKind::kByteArray); }},
    {')', [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kTuple)); }},
    {']', [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kList)); }},
    {'}', [](Machine& m) { m.push(m.graph_.dict()); }},
    {0x8f, [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kSet)); }},
    {'c', [](Machine& m) { m.inline_global(); }},
    // Values made of those on the stack.
    {'t', [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kTuple, m.pop_to_mark())); }},
    {0x85, [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kTuple, m.pop_some(1))); }},
    {0x86, [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kTuple, m.pop_some(2))); }},
    {0x87, [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kTuple, m.pop_some(3))); }},
    {'l', [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kList, m.pop_to_mark())); }},
    {0x91, [](Machine& m) { m.push(m.graph_.sequence(NodeKind::kFrozenSet, m.pop_to_mark())); }},
    {'d', [](Machine& m) { m.dict_to_mark(); }},
    {'a', [](Machine& m) { m.append(m.pop_some(1)); }},
    {'e', [](Machine& m) { m.append(m.pop_to_mark()); }},
    {0x90, [](Machine& m) { m.add_to_set(m.pop_to_mark()); }},
    {'s', [](Machine& m) { m.set_items(m.pop_some(2)); }},
    {'u', [](Machine& m) { m.set_items(m.pop_to_mark()); }},
    {'R', [](Machine& m) { m.push_call(CallKind::kReduce, false); }},
    {0x81, [](Machine& m) { m.push_call(CallKind::kNewObject, false); }},
    {0x92, [](Machine& m) { m.push_call(CallKind::kNewObjectEx, true); }},
    {'b', [](Machine& m) { m.build(); }},
    {'Q', [](Machine& m) { m.push(m.graph_.persistent(m.pop())); }},
    {0x93, [](Machine& m) { m.stack_global(); }},
    // The machine itself.
    {0x80, [](Machine& m) { m.check_protocol(); }},
    {0x95, [](Machine& m) { m.check_frame(); }},
    {'(', [](Machine& m) { m.mark(); }},
    {'0', [](Machine& m) { m.drop(); }},
    {'1', [](Machine& m) { m.pop_to_mark(); }},
    {'2', [](Machine& m) { m.push(m.top()); }},
    {'h', [](Machine& m) { m.get(m.next<uint8_t>("a memo index")); }},
    {'j', [](Machine& m) { m.get(m.next<uint32_t>("a memo index")); }},
    {'q', [](Machine& m) { m.put(m.next<uint8_t>("a memo index")); }},
    {'r', [](Machine& m) { m.put(m.next<uint32_t>("a memo index")); }},
    {0x94, [](Machine& m) { m.put(m.memo_count_); }},
};

std::array<Machine::Step, 256> Machine::steps_by_opcode() {
  std::array<Step, 256> out{};
  for (const Opcode& opcode : kOpcodes) out[opcode.code] = opcode.step;
  return out;
}

}  // namespace

PickleGraph read_pickle(const uint8_t* data, uint64_t bytes, const std::string& file,
                        int64_t file_offset, const PickleLimits& limits) {
  if (bytes > limits.bytes) {
    throw_format_error(file, file_offset, concat("a pickle of at most ", limits.bytes, " bytes"),
                       concat(bytes, " bytes"), kNotOurs);
  }
  PickleGraph graph = Machine(data, bytes, file, file_offset).run();
  graph.check_depth(file, limits.depth);
  return graph;
}

}  // namespace zeromuon::formats
