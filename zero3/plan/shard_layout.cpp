#include "zero3/plan/shard_layout.h"

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

// That the ranges of a parameter hold each of its elements once.
void check_param(const ParamShard& p, int world_size) {
  require(p.rows == 0 || p.rows * p.cols == p.numel, "parameter \"", p.name, "\": a view of (",
          p.rows, ", ", p.cols, ") has ", p.rows * p.cols, " elements, the parameter has ",
          p.numel);
  require(p.ranges.size() == static_cast<size_t>(world_size), "parameter \"", p.name,
          "\": ", p.ranges.size(), " ranges, expected one for each of ", world_size, " ranks");
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

// The elements of one row of the block that lie in [begin, end), as flat offsets.
struct Segment {
  int64_t begin, end;
  int64_t length() const { return std::max<int64_t>(0, end - begin); }
};

Segment row_segment(const ParamShard& p, const MatrixBlock& block, int64_t row, int64_t begin,
                    int64_t end) {
  return {std::max(begin, row * p.cols + block.col_begin),
          std::min(end, row * p.cols + block.col_end)};
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

std::vector<StridedRun> ShardLayout::runs(const MatrixBlock& block, int rank) const {
  const ParamShard& p = params_[block.param];
  const ShardRange& held = p.ranges[rank];
  const int64_t begin = held.begin, end = held.begin + held.numel;
  const auto run_at = [&](int64_t row, Segment s, int64_t count) {
    return StridedRun{
        held.offset + s.begin - begin,
        p.cols,
        (row - block.row_begin) * block.cols() + s.begin - row * p.cols - block.col_begin,
        block.cols(),
        s.length(),
        count};
  };

  if (block.cols() == p.cols) {  // whole rows are contiguous
    const Segment s{std::max(begin, block.row_begin * p.cols),
                    std::min(end, block.row_end * p.cols)};
    if (s.length() == 0) return {};
    StridedRun run{
        held.offset + s.begin - begin, 0, s.begin - block.row_begin * p.cols, 0, s.length(), 1};
    return {run};
  }

  std::vector<StridedRun> runs;
  const int64_t first = std::max(block.row_begin, begin / p.cols);
  const int64_t last = std::min(block.row_end, (end + p.cols - 1) / p.cols);  // one past
  for (int64_t row = first; row < last;) {
    const Segment s = row_segment(p, block, row, begin, end);
    int64_t count = 1;
    // Rows after a whole one join it, up to the last row, which may be cut.
    if (s.length() == block.cols() && row + 1 < last) {
      count = last - row;
      if (row_segment(p, block, last - 1, begin, end).length() < block.cols()) --count;
    }
    if (s.length() > 0) runs.push_back(run_at(row, s, count));
    row += count;
  }
  return runs;
}

}  // namespace zeromuon::zero3
