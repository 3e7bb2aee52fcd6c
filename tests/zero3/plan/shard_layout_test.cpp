#include "zero3/plan/shard_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "csrc/base/check.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::zero3 {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Zero3Param param(const std::string& name, int64_t rows, int64_t cols, int world, int64_t offset) {
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
          const int64_t flat = real.begin + in_shard - real.offset;
          const int64_t row = in_block / block.cols(),
                        range = row / (block.row_end - block.row_begin);
          const int64_t in_range = row % (block.row_end - block.row_begin);
          EXPECT_EQ(flat / p.cols, block.row_begin + range * block.period + in_range);
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
      const ShardLayout layout = zero3_layout(world, {param("w", rows, cols, world, 0)});
      EXPECT_EQ(coverage(layout, {0, 0, rows, 0, cols}), std::vector<int>(rows * cols, 1))
          << rows << "x" << cols << " on " << world << " ranks";
    }
  }
}

TEST(ShardLayout, RowAndColumnBlocksAreMetOnceInAtMostThreeRuns) {
  constexpr int64_t kRows = 12, kCols = 10;
  const std::vector<MatrixBlock> blocks = {
      {0, 0, 4, 0, kCols},       {0, 3, 9, 0, kCols},       {0, 0, kRows, 2, 7},
      {0, 1, 11, 9, 10},         {0, 5, 6, 3, 4},           {0, 2, 8, 0, 5},
      {0, 1, 3, 0, kCols, 3, 4}, {0, 0, 1, 0, kCols, 6, 2}, {0, 0, 2, 0, kCols, 6, 2},
  };
  for (int world = 1; world <= 13; ++world) {
    const ShardLayout layout = zero3_layout(world, {param("w", kRows, kCols, world, 0)});
    for (const MatrixBlock& block : blocks) {
      EXPECT_EQ(coverage(layout, block), std::vector<int>(block.numel(), 1)) << "W=" << world;
      for (int rank = 0; rank < world; ++rank) {
        EXPECT_LE(layout.runs(block, rank).size(), 3u);
      }
    }
  }
}

TEST(ShardLayout, TrailingRanksOfATinyParameterHoldNothing) {
  const ShardLayout layout = zero3_layout(5, {param("w", 1, 2, 5, 0)});
  EXPECT_EQ(layout.real_range(0, 1).numel, 1);
  EXPECT_EQ(layout.real_range(0, 2).numel, 0);
  EXPECT_TRUE(layout.runs({0, 0, 1, 0, 2}, 4).empty());
  EXPECT_EQ(layout.shard_numel(), 1);
}

TEST(ShardLayout, ChunksOfSeveralParametersFollowEachOther) {
  const ShardLayout layout = zero3_layout(2, {param("a", 3, 3, 2, 0), param("b", 2, 2, 2, 5)});
  EXPECT_EQ(layout.shard_numel(), 7);
  const auto runs = layout.runs({1, 0, 2, 0, 2}, 1);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].shard_offset, 5);
  EXPECT_EQ(runs[0].block_offset, 2);
  EXPECT_EQ(runs[0].length, 2);
}

TEST(ShardLayout, AChunkOfAnotherSizeIsRefusedByName) {
  Zero3Param p = param("layers.0.weight", 3, 3, 2, 0);
  p.chunk = 6;
  try {
    zero3_layout(2, {p});
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("layers.0.weight"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("holds 6"), std::string::npos);
  }
}

TEST(ShardLayout, AGapInTheFlatShardIsRefused) {
  EXPECT_THROW(zero3_layout(2, {param("a", 3, 3, 2, 0), param("b", 2, 2, 2, 6)}), ValueError);
}

// Any cut of any parameters: through rows, ranks without elements, gaps and another order in every
// shard.
class RandomCuts {
 public:
  explicit RandomCuts(unsigned seed) : random_(seed) {}

  ShardLayout layout() {
    const int world = static_cast<int>(below(7)) + 1, params = static_cast<int>(below(4)) + 1;
    for (int p = 0; p < params; ++p) add_param(p, world);
    int64_t longest = 0;
    for (int rank = 0; rank < world; ++rank) longest = std::max(longest, place(rank));
    return {world, longest + below(3), params_};
  }

  // A block somewhere in a parameter.
  MatrixBlock block(int param) {
    const ParamShard& p = params_[param];
    MatrixBlock out{param, below(p.rows), 0, below(p.cols), 0};
    out.row_end = out.row_begin + 1 + below(p.rows - out.row_begin);
    out.col_end = out.col_begin + 1 + below(p.cols - out.col_begin);
    return out;
  }

  // Ranges of rows at equal distances.
  MatrixBlock repeated(int param) {
    const ParamShard& p = params_[param];
    MatrixBlock out{param, below(p.rows), 0, 0, p.cols};
    out.row_end = out.row_begin + 1 + below(p.rows - out.row_begin);
    out.period = out.row_end - out.row_begin + below(3);
    out.count = 1 + below((p.rows - out.row_end) / out.period + 1);
    return out;
  }

 private:
  int64_t below(int64_t bound) { return static_cast<int64_t>(random_() % bound); }

  // Its ranges go to the ranks in any order.
  void add_param(int number, int world) {
    const int64_t rows = 1 + below(9), cols = 1 + below(9);
    std::vector<int64_t> cuts = {0, rows * cols};
    while (cuts.size() < static_cast<size_t>(world) + 1) cuts.push_back(below(rows * cols + 1));
    std::sort(cuts.begin(), cuts.end());
    ParamShard p{concat("p", number), rows * cols, rows, cols, {}};
    for (int rank = 0; rank < world; ++rank) {
      p.ranges.push_back({0, cuts[rank + 1] - cuts[rank], cuts[rank]});
    }
    std::shuffle(p.ranges.begin(), p.ranges.end(), random_);
    params_.push_back(std::move(p));
  }

  // The parameters one after the other in any order, with gaps; returns where the last ends.
  int64_t place(int rank) {
    std::vector<size_t> order(params_.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    int64_t end = 0;
    for (const size_t p : order) {
      ShardRange& range = params_[p].ranges[rank];
      range.offset = end + below(4);
      if (range.numel > 0) end = range.offset + range.numel;
    }
    return end;
  }

  std::mt19937 random_;
  std::vector<ParamShard> params_;
};

TEST(ShardLayout, OfAnyCutTheRunsOfABlockMeetEachOfItsElementsOnce) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    RandomCuts cuts(seed);
    const ShardLayout layout = cuts.layout();
    for (int p = 0; p < static_cast<int>(layout.params().size()); ++p) {
      const ParamShard& param = layout.params()[p];
      for (const MatrixBlock& block :
           {MatrixBlock{p, 0, param.rows, 0, param.cols}, cuts.block(p), cuts.repeated(p)}) {
        EXPECT_EQ(coverage(layout, block), std::vector<int>(block.numel(), 1)) << "seed " << seed;
        for (int rank = 0; rank < layout.world_size(); ++rank) {
          EXPECT_LE(layout.runs(block, rank).size(), 3u) << "seed " << seed;
        }
      }
    }
  }
}

TEST(ShardLayout, RangesThatDoNotPartitionTheirParameterAreRefused) {
  const auto layout_of = [](std::vector<ShardRange> ranges) {
    return ShardLayout(2, 9, {{"w", 6, 2, 3, std::move(ranges)}});
  };
  EXPECT_NO_THROW(layout_of({{0, 4, 0}, {5, 2, 4}}));
  EXPECT_NO_THROW(layout_of({{0, 0, 3}, {3, 6, 0}}));
  EXPECT_THROW(layout_of({{0, 4, 0}, {0, 1, 4}}), ValueError) << "an element of no rank";
  EXPECT_THROW(layout_of({{0, 4, 0}, {0, 3, 3}}), ValueError) << "an element of two ranks";
  EXPECT_THROW(layout_of({{0, 7, 0}, {0, -1, 7}}), ValueError) << "a negative size";
  EXPECT_THROW(layout_of({{0, 6, 0}}), ValueError) << "a rank without a range";
  EXPECT_THROW(layout_of({{4, 6, 0}, {0, 0, 6}}), ValueError) << "beyond the shard";
  EXPECT_THROW(layout_of({{-1, 6, 0}, {0, 0, 6}}), ValueError) << "before the shard";
}

TEST(ShardLayout, ParametersThatOverlapInAShardAreRefusedByName) {
  try {
    ShardLayout(1, 9, {{"a", 3, 0, 0, {{0, 3, 0}}}, {"b", 4, 0, 0, {{2, 4, 0}}}});
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("\"b\" begins at element 2"), std::string::npos);
  }
}

TEST(Zero3Partition, ARankHoldsItsChunkWithoutThePadding) {
  for (int world = 1; world <= 9; ++world) {
    for (int64_t numel = 0; numel <= 40; ++numel) {
      int64_t held = 0;
      for (int rank = 0; rank < world; ++rank) {
        const ShardRange range = zero3_range(numel, world, rank, 7);
        EXPECT_EQ(range.begin, std::min(numel, rank * ceil_div(numel, world)));
        EXPECT_EQ(range.begin, held) << numel << " on " << world;
        EXPECT_EQ(range.offset, 7);
        held += range.numel;
      }
      EXPECT_EQ(held, numel);
    }
  }
}

TEST(Zero3Partition, ASubGroupClosesWithTheParameterThatFillsIt) {
  using Sizes = std::vector<int64_t>;
  EXPECT_EQ(zero3_sub_groups({}, 2, 10), Sizes{});
  EXPECT_EQ(zero3_sub_groups({8, 11, 4, 30, 1}, 2, 10), (Sizes{2, 2, 1}));
  EXPECT_EQ(zero3_sub_groups({8, 8, 8}, 2, 1), (Sizes{1, 1, 1}));
  EXPECT_EQ(zero3_sub_groups({8, 8, 8}, 2, INT64_MAX), Sizes{3});
}

}  // namespace
}  // namespace zeromuon::zero3
