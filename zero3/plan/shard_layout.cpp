#include "zero3/plan/shard_layout.h"

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

void check_param(const ParamShard& p, int world_size) {
  const int64_t chunk = (p.numel + world_size - 1) / world_size;
  require(p.numel > 0, "parameter \"", p.name, "\" has no elements");
  require(p.chunk == chunk, "parameter \"", p.name, "\": DeepSpeed holds ", p.chunk,
          " elements per rank, expected ceil(", p.numel, "/", world_size, ") = ", chunk,
          "; this DeepSpeed partitions differently and is not supported");
  require(p.rows == 0 || p.rows * p.cols == p.numel, "parameter \"", p.name, "\": a view of (",
          p.rows, ", ", p.cols, ") has ", p.rows * p.cols, " elements, the parameter has ",
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

ShardLayout::ShardLayout(int world_size, std::vector<ParamShard> params)
    : world_size_(world_size), params_(std::move(params)) {
  require(world_size_ >= 1, "world size must be at least 1, got ", world_size_);
  for (const ParamShard& p : params_) {
    check_param(p, world_size_);
    require(p.shard_offset == shard_numel_, "parameter \"", p.name, "\" begins at element ",
            p.shard_offset, " of the flat shard, expected ", shard_numel_);
    shard_numel_ += p.chunk;
  }
}

ShardRange ShardLayout::real_range(int param, int rank) const {
  const ParamShard& p = params_[param];
  const int64_t real = std::clamp<int64_t>(p.numel - rank * p.chunk, 0, p.chunk);
  return {p.shard_offset, real};
}

std::vector<StridedRun> ShardLayout::runs(const MatrixBlock& block, int rank) const {
  const ParamShard& p = params_[block.param];
  const int64_t begin = rank * p.chunk;
  const int64_t end = begin + real_range(block.param, rank).numel;
  const auto run_at = [&](int64_t row, Segment s, int64_t count) {
    return StridedRun{
        p.shard_offset + s.begin - begin,
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
        p.shard_offset + s.begin - begin, 0, s.begin - block.row_begin * p.cols, 0, s.length(), 1};
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
