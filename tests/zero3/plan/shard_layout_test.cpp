#include "zero3/plan/shard_layout.h"

#include <gtest/gtest.h>

#include <vector>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ParamShard param(const std::string& name, int64_t rows, int64_t cols, int world, int64_t offset) {
  return {name, rows * cols, ceil_div(rows * cols, world), offset, rows, cols};
}

// Puts every rank's runs of a block together; counts how often each element of the block was met.
std::vector<int> coverage(const ShardLayout& layout, const MatrixBlock& block) {
  std::vector<int> met(block.numel(), 0);
  const ParamShard& p = layout.params()[block.param];
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    const ShardRange real = layout.real_range(block.param, rank);
    for (const StridedRun& run : layout.runs(block, rank)) {
      for (int64_t r = 0; r < run.count; ++r) {
        for (int64_t i = 0; i < run.length; ++i) {
          const int64_t in_shard = run.shard_offset + r * run.shard_stride + i;
          const int64_t in_block = run.block_offset + r * run.block_stride + i;
          EXPECT_GE(in_shard, real.offset);
          EXPECT_LT(in_shard, real.offset + real.numel) << "padding touched on rank " << rank;
          const int64_t flat = rank * p.chunk + in_shard - p.shard_offset;
          EXPECT_EQ(flat / p.cols - block.row_begin, in_block / block.cols());
          EXPECT_EQ(flat % p.cols - block.col_begin, in_block % block.cols());
          ++met[in_block];
        }
      }
    }
  }
  return met;
}

TEST(ShardLayout, EveryElementOfAWholeMatrixIsMetOnceAtEveryWorldSize) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 2}, {3, 5}, {7, 11}, {16, 4}, {5, 64}}) {
    for (int world = 1; world <= 9; ++world) {
      const ShardLayout layout(world, {param("w", rows, cols, world, 0)});
      EXPECT_EQ(coverage(layout, {0, 0, rows, 0, cols}), std::vector<int>(rows * cols, 1))
          << rows << "x" << cols << " on " << world << " ranks";
    }
  }
}

TEST(ShardLayout, RowAndColumnBlocksAreMetOnceInAtMostThreeRuns) {
  constexpr int64_t kRows = 12, kCols = 10;
  const std::vector<MatrixBlock> blocks = {
      {0, 0, 4, 0, kCols}, {0, 3, 9, 0, kCols}, {0, 0, kRows, 2, 7},
      {0, 1, 11, 9, 10},   {0, 5, 6, 3, 4},     {0, 2, 8, 0, 5},
  };
  for (int world = 1; world <= 13; ++world) {
    const ShardLayout layout(world, {param("w", kRows, kCols, world, 0)});
    for (const MatrixBlock& block : blocks) {
      EXPECT_EQ(coverage(layout, block), std::vector<int>(block.numel(), 1)) << "W=" << world;
      for (int rank = 0; rank < world; ++rank) {
        EXPECT_LE(layout.runs(block, rank).size(), 3u);
      }
    }
  }
}

TEST(ShardLayout, TrailingRanksOfATinyParameterHoldNothing) {
  const ShardLayout layout(5, {param("w", 1, 2, 5, 0)});
  EXPECT_EQ(layout.real_range(0, 1).numel, 1);
  EXPECT_EQ(layout.real_range(0, 2).numel, 0);
  EXPECT_TRUE(layout.runs({0, 0, 1, 0, 2}, 4).empty());
  EXPECT_EQ(layout.shard_numel(), 1);
}

TEST(ShardLayout, ChunksOfSeveralParametersFollowEachOther) {
  const ShardLayout layout(2, {param("a", 3, 3, 2, 0), param("b", 2, 2, 2, 5)});
  EXPECT_EQ(layout.shard_numel(), 7);
  const auto runs = layout.runs({1, 0, 2, 0, 2}, 1);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].shard_offset, 5);
  EXPECT_EQ(runs[0].block_offset, 2);
  EXPECT_EQ(runs[0].length, 2);
}

TEST(ShardLayout, AChunkOfAnotherSizeIsRefusedByName) {
  ParamShard p = param("layers.0.weight", 3, 3, 2, 0);
  p.chunk = 6;
  try {
    ShardLayout(2, {p});
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("layers.0.weight"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("holds 6"), std::string::npos);
  }
}

TEST(ShardLayout, AGapInTheFlatShardIsRefused) {
  EXPECT_THROW(ShardLayout(2, {param("a", 3, 3, 2, 0), param("b", 2, 2, 2, 6)}), ValueError);
}

}  // namespace
}  // namespace zeromuon::zero3
