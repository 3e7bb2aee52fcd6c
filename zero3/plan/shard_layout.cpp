#include "zero3/plan/shard_layout.h"

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

// The ranges of a parameter must hold each of its elements once.
void check_cut(const ParamShard& p) {
  std::vector<ShardRange> ranges = p.ranges;
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  int64_t end = 0;
  for (const ShardRange& range : ranges) {
    if (range.numel == 0) continue;
    require(range.numel > 0 && range.begin == end, "parameter \"", p.name, "\": a rank holds ",
            range.numel, " elements from ", range.begin, ", expected some from ", end);
    end += range.numel;
  }
  require(end == p.numel, "parameter \"", p.name, "\": the ranks hold ", end, " elements of ",
          p.numel);
}

void check_param(const ParamShard& p, int world_size) {
  require(p.rows == 0 || p.rows * p.cols == p.numel, "parameter \"", p.name, "\": a view of (",
          p.rows, ", ", p.cols, ") has ", p.rows * p.cols, " elements, the parameter has ",
          p.numel);
  require(p.ranges.size() == static_cast<size_t>(world_size), "parameter \"", p.name,
          "\": ", p.ranges.size(), " ranges, expected one for each of ", world_size, " ranks");
  check_cut(p);
}

}  // namespace

ShardLayout::ShardLayout(int world_size, int64_t shard_numel, std::vector<ParamShard> params)
    : world_size_(world_size), shard_numel_(shard_numel), params_(std::move(params)) {
  require(world_size_ >= 1, "world size must be at least 1, got ", world_size_);
  for (const ParamShard& p : params_) check_param(p, world_size_);
  for (int rank = 0; rank < world_size_; ++rank) check_shard(rank);
}

void ShardLayout::check_shard(int rank) const {
  std::vector<const ParamShard*> held;
  for (const ParamShard& p : params_) {
    if (p.ranges[rank].numel > 0) held.push_back(&p);
  }
  std::sort(held.begin(), held.end(), [rank](const auto* a, const auto* b) {
    return a->ranges[rank].offset < b->ranges[rank].offset;
  });
  int64_t end = 0;
  for (const ParamShard* p : held) {
    const ShardRange& range = p->ranges[rank];
    require(range.offset >= end, "parameter \"", p->name, "\" begins at element ", range.offset,
            " of the flat shard of rank ", rank, ", where another ends at ", end);
    end = range.offset + range.numel;
  }
  require(end <= shard_numel_, "the flat shard of rank ", rank, " has ", shard_numel_,
          " elements, its parameters end at ", end);
}

BlockLines ShardLayout::lines(const MatrixBlock& block) const {
  const int64_t cols = params_[block.param].cols;
  const int64_t first = block.row_begin * cols + block.col_begin;
  if (block.cols() < cols) return {first, cols, block.cols(), block.rows()};
  const int64_t length = (block.row_end - block.row_begin) * cols;  // whole rows are contiguous
  return {first, block.count == 1 ? length : block.period * cols, length, block.count};
}

std::vector<StridedRun> ShardLayout::runs(const MatrixBlock& block, int rank) const {
  const ShardRange& held = params_[block.param].ranges[rank];
  const BlockLines l = lines(block);
  const int64_t begin = held.begin, end = held.begin + held.numel;
  if (begin == end || end <= l.first) return {};
  // The first line that ends after `begin`, and one past the last that begins before `end`.
  const int64_t before = begin - l.first - l.length;
  const int64_t last = std::min(l.count, (end - l.first + l.stride - 1) / l.stride);
  const auto held_of = [&](int64_t line) {
    const int64_t at = l.first + line * l.stride;
    return std::pair{std::max(begin, at), std::min(end, at + l.length)};
  };
  std::vector<StridedRun> runs;
  for (int64_t line = before < 0 ? 0 : before / l.stride + 1; line < last;) {
    const auto [from, to] = held_of(line);
    int64_t count = 1;
    // Lines after a whole one join it, up to the last one, which may be cut.
    if (to - from == l.length && line + 1 < last) {
      const auto [last_from, last_to] = held_of(last - 1);
      count = last - line - (last_to - last_from < l.length ? 1 : 0);
    }
    const int64_t in_block = line * l.length + from - (l.first + line * l.stride);
    runs.push_back({held.offset + from - begin, l.stride, in_block, l.length, to - from, count});
    line += count;
  }
  return runs;
}

}  // namespace zeromuon::zero3
