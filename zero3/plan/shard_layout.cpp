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

// The part of a block of whole rows, which are contiguous.
std::vector<StridedRun> runs_of_whole_rows(const ParamShard& p, const MatrixBlock& block,
                                           const ShardRange& held) {
  const int64_t first = block.row_begin * p.cols;
  const Segment s{std::max(held.begin, first),
                  std::min(held.begin + held.numel, block.row_end * p.cols)};
  if (s.length() == 0) return {};
  return {{held.offset + s.begin - held.begin, 0, s.begin - first, 0, s.length(), 1}};
}

std::vector<StridedRun> runs_of_rows(const ParamShard& p, const MatrixBlock& block,
                                     const ShardRange& held) {
  const int64_t begin = held.begin, end = held.begin + held.numel;
  const int64_t first = std::max(block.row_begin, begin / p.cols);
  const int64_t last = std::min(block.row_end, (end + p.cols - 1) / p.cols);  // one past
  std::vector<StridedRun> runs;
  for (int64_t row = first; row < last;) {
    const Segment s = row_segment(p, block, row, begin, end);
    int64_t count = 1;
    // Rows after a whole one join it, up to the last row, which may be cut.
    if (s.length() == block.cols() && row + 1 < last) {
      count = last - row;
      if (row_segment(p, block, last - 1, begin, end).length() < block.cols()) --count;
    }
    const int64_t in_block =
        (row - block.row_begin) * block.cols() + s.begin - row * p.cols - block.col_begin;
    if (s.length() > 0) {
      runs.push_back(
          {held.offset + s.begin - begin, p.cols, in_block, block.cols(), s.length(), count});
    }
    row += count;
  }
  return runs;
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
  return block.cols() == p.cols ? runs_of_whole_rows(p, block, held) : runs_of_rows(p, block, held);
}

}  // namespace zeromuon::zero3
