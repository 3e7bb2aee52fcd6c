#include "zero3/bucket_route.h"

#include <algorithm>
#include <numeric>

namespace zeromuon::zero3 {
namespace {

constexpr int64_t kLineNumel = 16;  // fp32 elements in a cache line

// Appends the pieces of every block of `owner` that lies in `rank`'s shard; returns the bytes.
int64_t append_segment(const StepPlan& plan, const SubGroupPlan& group, const Bucket& bucket,
                       int owner, int rank, int64_t wire_offset, std::vector<RoutePiece>& pieces) {
  const int64_t element_bytes = size_of(plan.options.wire_dtype);
  const int64_t begin = wire_offset;
  wire_offset += kFlagBytes;
  for (int b = bucket.begin; b < bucket.end; ++b) {
    if (group.blocks[b].owner != owner) continue;
    for (const StridedRun& run : group.layout.runs(group.blocks[b].block, rank)) {
      pieces.push_back({run, b, wire_offset, 0});
      wire_offset += run.numel() * element_bytes;
    }
  }
  // The next segment's flag word stays aligned.
  wire_offset = (wire_offset + kFlagBytes - 1) / kFlagBytes * kFlagBytes;
  return wire_offset - begin;
}

}  // namespace

BucketRoute route_of(const StepPlan& plan, int sub_group, int bucket_index, int rank) {
  const SubGroupPlan& group = plan.sub_groups[sub_group];
  const Bucket& bucket = group.buckets[bucket_index];
  BucketRoute route;
  int64_t shard_offset = 0, owner_offset = 0;
  for (int peer = 0; peer < plan.options.world_size; ++peer) {
    route.shard_bytes.push_back(
        append_segment(plan, group, bucket, peer, rank, shard_offset, route.shard_pieces));
    route.owner_bytes.push_back(
        append_segment(plan, group, bucket, rank, peer, owner_offset, route.owner_pieces));
    shard_offset += route.shard_bytes.back();
    owner_offset += route.owner_bytes.back();
  }
  for (int b = bucket.begin; b < bucket.end; ++b) {
    if (group.blocks[b].owner != rank) continue;
    route.owned.push_back({b, route.matrix_numel});
    const int64_t lines = (group.blocks[b].block.numel() + kLineNumel - 1) / kLineNumel;
    route.matrix_numel += lines * kLineNumel;
  }
  for (RoutePiece& piece : route.owner_pieces) {
    const auto owned = std::find_if(route.owned.begin(), route.owned.end(),
                                    [&](const OwnedBlock& o) { return o.block == piece.block; });
    piece.matrix_offset = owned->matrix_offset;
  }
  return route;
}

offload::SlotSizes slot_sizes(const StepPlan& plan, int rank) {
  offload::SlotSizes sizes;
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = plan.sub_groups[g];
    for (size_t k = 0; k < group.buckets.size(); ++k) {
      const BucketRoute route = route_of(plan, static_cast<int>(g), static_cast<int>(k), rank);
      const auto sum = [](const auto& v) { return std::reduce(v.begin(), v.end(), int64_t{0}); };
      sizes.shard_bytes = std::max(sizes.shard_bytes, sum(route.shard_bytes));
      sizes.owner_bytes = std::max(sizes.owner_bytes, sum(route.owner_bytes));
      sizes.matrix_numel = std::max(sizes.matrix_numel, route.matrix_numel);
      for (const OwnedBlock& owned : route.owned) {
        const auto& shape = plan.newton_schulz[group.blocks[owned.block].newton_schulz];
        sizes.scratch_numel = std::max(sizes.scratch_numel, shape.scratch_numel);
      }
    }
  }
  return sizes;
}

}  // namespace zeromuon::zero3
