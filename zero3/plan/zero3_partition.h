// How DeepSpeed's ZeRO-3 cuts: the only place that knows.
//
// A parameter of n elements is cut into W chunks of ceil(n/W) elements: rank r holds row-major
// elements [r*chunk, min((r+1)*chunk, n)) at the beginning of its chunk, and the rest of the chunk
// is padding. The chunks of a sub-group's parameters follow each other in the flat shard, at the
// same offsets on all ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "zero3/plan/shard_layout.h"

namespace zeromuon::zero3 {

// Elements of a parameter's chunk, padding included.
int64_t zero3_chunk(int64_t numel, int world_size);

// What a rank holds of a parameter whose chunks begin at `offset`.
ShardRange zero3_range(int64_t numel, int world_size, int rank, int64_t offset = 0);

// What the host says of one parameter.
struct Zero3Param {
  std::string name;
  int64_t numel = 0;
  int64_t chunk = 0;         // elements per rank, padding included
  int64_t shard_offset = 0;  // where the chunk begins in the flat shard, the same on all ranks
  int64_t rows = 0;          // 2-D view of the parameter; 0 x 0 when it has none
  int64_t cols = 0;
};

// Raises ValueError for a world size below 1, and when a chunk is not ceil(n/W) or does not begin
// where the one before it ends.
ShardLayout zero3_layout(int world_size, const std::vector<Zero3Param>& params);

// How many of the parameters of a group, by their sizes and in order, each of its sub-groups takes:
// one closes with the parameter that brings it to `sub_group_size` elements of a rank.
std::vector<int64_t> zero3_sub_groups(const std::vector<int64_t>& numels, int world_size,
                                      int64_t sub_group_size);

}  // namespace zeromuon::zero3
