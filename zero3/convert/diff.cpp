#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "zero3/convert/elements.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

using Parts = std::map<std::pair<std::string, std::string>, const TensorSource*>;

// Everything that can be compared, by name and part; tied names count, too.
Parts parts_of(const Checkpoint& checkpoint, bool states) {
  Parts out;
  std::map<std::string, const NamedTensor*> names;
  for (const NamedTensor& tensor : checkpoint.tensors) {
    names[tensor.name] = &tensor;
    out[{tensor.name, "value"}] = &tensor.value;
    if (!states) continue;
    for (const auto& [part, source] : tensor.states) out[{tensor.name, part}] = &source;
  }
  for (const auto& [alias, stored] : checkpoint.aliases) {
    const auto found = names.find(stored);
    if (found != names.end()) out[{alias, "value"}] = &found->second->value;
  }
  return out;
}

bool has_states(const Checkpoint& checkpoint) {
  return std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                     [](const NamedTensor& t) { return !t.states.empty(); });
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + ")";
}

std::string label_of(const Parts::key_type& key) {
  return key.second == "value" ? key.first : key.first + ": " + key.second;
}

// Counts where the elements differ: by bits when both have one type, by value otherwise.
void compare(const TensorSource& a, const uint8_t* in_a, const TensorSource& b, const uint8_t* in_b,
             int64_t count, TensorDifference& out) {
  const auto size = static_cast<size_t>(size_of(a.type));
  if (a.type == b.type && std::memcmp(in_a, in_b, size * static_cast<size_t>(count)) == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    const double x = value_of(a.type, in_a, i), y = value_of(b.type, in_b, i);
    const size_t at = static_cast<size_t>(i) * size;
    const bool same = a.type == b.type ? std::memcmp(in_a + at, in_b + at, size) == 0
                                       : x == y || (std::isnan(x) && std::isnan(y));
    if (same) continue;
    ++out.different;
    const double distance = std::abs(x - y), scale = std::max(std::abs(x), std::abs(y));
    if (std::isnan(distance)) {
      out.max_abs = INFINITY;
    } else {
      out.max_abs = std::max(out.max_abs, distance);
      if (scale > 0) out.max_rel = std::max(out.max_rel, distance / scale);
    }
  }
}

// open_checkpoint(), whose remedies name the option of this side.
Checkpoint open_side(const Source& source, const std::string& option) {
  try {
    return open_checkpoint(source.path, source.tag);
  } catch (const formats::FormatError& error) {
    constexpr std::string_view kTag = "--tag";
    formats::Finding finding = error.finding();
    const size_t at = finding.remedy.find(kTag);
    if (at != std::string::npos) finding.remedy.replace(at, kTag.size(), option + " (or --tag)");
    throw formats::FormatError(std::move(finding));
  }
}

// What both sides have in the same shape, block by block.
class Differ {
 public:
  explicit Differ(DiffReport& report) : report_(report) {}

  void pair(const Parts& in_a, const Parts& in_b) {
    for (const auto& [key, source] : in_b) {
      if (!in_a.contains(key)) report_.only_in_b.push_back(label_of(key));
    }
    for (const auto& [key, source] : in_a) {
      const auto other = in_b.find(key);
      if (other == in_b.end()) {
        report_.only_in_a.push_back(label_of(key));
      } else {
        add(key, *source, *other->second);
      }
    }
  }

  void compare_all(const RunOptions& run) {
    for (const Block& block : blocks_b_) readers_b_.emplace_back(block);
    read_blocks(blocks_a_, run, [&](int block, int64_t begin, const uint8_t* data, int64_t count) {
      compare_chunk(block, begin, data, count);
    });
    for (TensorDifference& difference : found_) {
      const bool other_type = difference.in_a != difference.in_b;
      difference.reason = difference.different > 0 ? "values" : other_type ? "dtype" : "";
      difference.reason.empty() ? void(++report_.equal) : report_.differences.push_back(difference);
    }
  }

 private:
  void add(const Parts::key_type& key, const TensorSource& a, const TensorSource& b) {
    ++report_.compared;
    const auto& [name, part] = key;
    if (a.shape != b.shape) {
      report_.differences.push_back(
          {name, part, "shape", text_of(a.shape), text_of(b.shape), 0, 0, 0});
      return;
    }
    blocks_a_.push_back(block_of(a, a.type));
    blocks_b_.push_back(block_of(b, b.type));
    found_.push_back({name, part, "", name_of(a.type), name_of(b.type), 0, 0, 0});
  }

  void compare_chunk(int block, int64_t begin, const uint8_t* data, int64_t count) {
    thread_local std::vector<uint8_t> second, scratch;
    const TensorSource& a = blocks_a_[block].pieces[0].source;
    const TensorSource& b = blocks_b_[block].pieces[0].source;
    second.resize(static_cast<size_t>(count * size_of(b.type)));
    readers_b_[block].read(begin, count, second.data(), scratch);
    TensorDifference part;
    compare(a, data, b, second.data(), count, part);
    const std::lock_guard lock(mutex_);
    found_[block].different += part.different;
    found_[block].max_abs = std::max(found_[block].max_abs, part.max_abs);
    found_[block].max_rel = std::max(found_[block].max_rel, part.max_rel);
  }

  DiffReport& report_;
  std::vector<Block> blocks_a_, blocks_b_;
  std::vector<BlockReader> readers_b_;
  std::mutex mutex_;
  std::vector<TensorDifference> found_;  // of the blocks; mutex_
};

}  // namespace

DiffReport diff(const DiffOptions& options) {
  const Checkpoint a = open_side(options.a, "--tag-a");
  const Checkpoint b = open_side(options.b, "--tag-b");
  check_verb(a, "diff");
  check_verb(b, "diff");
  const bool states = options.states && has_states(a) && has_states(b);
  DiffReport report;
  Differ differ(report);
  differ.pair(parts_of(a, states), parts_of(b, states));
  differ.compare_all(options.run);
  return report;
}

}  // namespace zeromuon::convert
