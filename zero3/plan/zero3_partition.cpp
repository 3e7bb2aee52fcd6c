#include "zero3/plan/zero3_partition.h"

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {

int64_t zero3_chunk(int64_t numel, int world_size) { return (numel + world_size - 1) / world_size; }

ShardRange zero3_range(int64_t numel, int world_size, int rank, int64_t offset) {
  const int64_t chunk = zero3_chunk(numel, world_size);
  const int64_t begin = std::min(numel, rank * chunk);
  return {offset, std::min(chunk, numel - begin), begin};
}

namespace {

// That the host's chunk is as long as the law says, and begins at `end`, where the one before ends.
void check_chunk(const Zero3Param& p, int world_size, int64_t end) {
  const int64_t chunk = zero3_chunk(p.numel, world_size);
  require(p.chunk == chunk, "parameter \"", p.name, "\": DeepSpeed holds ", p.chunk,
          " elements per rank, expected ceil(", p.numel, "/", world_size, ") = ", chunk,
          "; this DeepSpeed partitions differently and is not supported");
  require(p.shard_offset == end, "parameter \"", p.name, "\" begins at element ", p.shard_offset,
          " of the flat shard, expected ", end);
}

}  // namespace

ShardLayout zero3_layout(int world_size, const std::vector<Zero3Param>& params) {
  require(world_size >= 1, "world size must be at least 1, got ", world_size);
  std::vector<ParamShard> shards;
  int64_t end = 0;
  for (const Zero3Param& p : params) {
    check_chunk(p, world_size, end);
    ParamShard& shard = shards.emplace_back(ParamShard{p.name, p.numel, p.rows, p.cols, {}});
    for (int rank = 0; rank < world_size; ++rank) {
      shard.ranges.push_back(zero3_range(p.numel, world_size, rank, end));
    }
    end += p.chunk;
  }
  return {world_size, end, std::move(shards)};
}

std::vector<int64_t> zero3_sub_groups(const std::vector<int64_t>& numels, int world_size,
                                      int64_t sub_group_size) {
  std::vector<int64_t> out;
  int64_t held = sub_group_size;  // so that the first one opens
  for (const int64_t numel : numels) {
    if (held >= sub_group_size) {
      out.push_back(0);
      held = 0;
    }
    ++out.back();
    held += zero3_chunk(numel, world_size);
  }
  return out;
}

}  // namespace zeromuon::zero3
