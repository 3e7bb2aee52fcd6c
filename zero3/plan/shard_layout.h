// Where the elements of parameters lie in flat shards, and the pieces of a matrix block in them.
//
// Of every parameter a rank holds one contiguous range of its row-major elements, perhaps an empty
// one; no other element of a flat shard is ever read or written. How a host cuts is not known here:
// zero3_partition.h makes the layouts of ZeRO-3.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zeromuon::zero3 {

// A contiguous range of a rank's flat shard, and the parameter's element that it begins with.
struct ShardRange {
  int64_t offset = 0, numel = 0, begin = 0;
};

struct ParamShard {
  std::string name;
  int64_t numel = 0;
  int64_t rows = 0, cols = 0;      // 2-D view of the parameter; 0 x 0 when it has none
  std::vector<ShardRange> ranges;  // [W]
};

// Rows [row_begin, row_end) and columns [col_begin, col_end) of a parameter's 2-D view: the unit
// that Newton-Schulz works on. Or, of all columns, `count` such ranges of rows, each `period` rows
// after the one before, one under the other.
struct MatrixBlock {
  int param = 0;  // index of the ParamShard
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;
  int64_t count = 1, period = 0;

  int64_t rows() const { return (row_end - row_begin) * count; }
  int64_t cols() const { return col_end - col_begin; }
  int64_t numel() const { return rows() * cols(); }
};

// Where the elements of a block lie in its parameter, in the block's row-major order: `count` lines
// of `length` contiguous elements, whose beginnings are `stride` apart.
struct BlockLines {
  int64_t first = 0, stride = 0, length = 0, count = 1;
};

// `count` runs of `length` contiguous elements. Offsets are elements: into the flat shard, and into
// the block stored row-major.
struct StridedRun {
  int64_t shard_offset = 0, shard_stride = 0;
  int64_t block_offset = 0, block_stride = 0;
  int64_t length = 0, count = 1;

  int64_t numel() const { return length * count; }
};

class ShardLayout {
 public:
  // shard_numel: of every rank's flat shard, padding and gaps included. The ranges of a parameter
  // may be in any order of ranks, and the parameters in any order in a shard. Raises ValueError
  // when a view has another size than its parameter, when ranges leave out an element or hold one
  // twice, and when two overlap in a shard or reach outside it.
  ShardLayout(int world_size, int64_t shard_numel, std::vector<ParamShard> params);

  int world_size() const { return world_size_; }
  const std::vector<ParamShard>& params() const { return params_; }
  int64_t shard_numel() const { return shard_numel_; }

  // The elements of a parameter on a rank; numel 0 on ranks that hold none.
  const ShardRange& real_range(int param, int rank) const { return params_[param].ranges[rank]; }

  BlockLines lines(const MatrixBlock& block) const;

  // The part of `block` that `rank` holds, in row-major order: at most three strided runs, whose
  // runs are lines of the block, whole or cut.
  std::vector<StridedRun> runs(const MatrixBlock& block, int rank) const;

 private:
  void check_shard(int rank) const;

  int world_size_;
  int64_t shard_numel_;
  std::vector<ParamShard> params_;
};

}  // namespace zeromuon::zero3
