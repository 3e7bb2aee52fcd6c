// How ZeRO-3 cuts parameters into flat shards, and where the pieces of a matrix block lie in them.
//
// A parameter of `numel` elements is cut into W chunks of chunk = ceil(numel/W) elements; rank r
// holds row-major elements [r*chunk, min((r+1)*chunk, numel)) at `shard_offset` of its flat shard.
// The rest of its chunk is padding: never read, never written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zeromuon::zero3 {

struct ParamShard {
  std::string name;
  int64_t numel = 0;
  int64_t chunk = 0;         // elements per rank, padding included
  int64_t shard_offset = 0;  // where the chunk begins in the flat shard, the same on all ranks
  int64_t rows = 0;          // 2-D view of the parameter; 0 x 0 when it has none
  int64_t cols = 0;
};

// Rows [row_begin, row_end) and columns [col_begin, col_end) of a parameter's 2-D view: the unit
// that Newton-Schulz works on.
struct MatrixBlock {
  int param = 0;  // index of the ParamShard
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;

  int64_t rows() const { return row_end - row_begin; }
  int64_t cols() const { return col_end - col_begin; }
  int64_t numel() const { return rows() * cols(); }
};

// `count` runs of `length` contiguous elements. Offsets are elements: into the flat shard, and into
// the block stored row-major.
struct StridedRun {
  int64_t shard_offset = 0, shard_stride = 0;
  int64_t block_offset = 0, block_stride = 0;
  int64_t length = 0, count = 1;

  int64_t numel() const { return length * count; }
};

// A contiguous range of a flat shard.
struct ShardRange {
  int64_t offset = 0, numel = 0;
};

class ShardLayout {
 public:
  // Raises ValueError when a chunk is not ceil(numel/W), shapes and sizes disagree, or two chunks
  // overlap.
  ShardLayout(int world_size, std::vector<ParamShard> params);

  int world_size() const { return world_size_; }
  const std::vector<ParamShard>& params() const { return params_; }
  // Elements of the flat shard, padding included.
  int64_t shard_numel() const { return shard_numel_; }

  // The real (non-padding) elements of a parameter on a rank; numel 0 on ranks that hold none.
  ShardRange real_range(int param, int rank) const;

  // The part of `block` that `rank` holds, in row-major order: at most three strided runs.
  std::vector<StridedRun> runs(const MatrixBlock& block, int rank) const;

 private:
  int world_size_;
  std::vector<ParamShard> params_;
  int64_t shard_numel_ = 0;
};

}  // namespace zeromuon::zero3
