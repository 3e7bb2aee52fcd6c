#include "zero3/plan/bucket_route.h"

#include <algorithm>

#include "csrc/ops/arrays.h"
#include "csrc/ops/newton_schulz/work.h"

namespace zeromuon::zero3 {
namespace {

// fp32 elements between the beginnings of matrices
constexpr int64_t kLineNumel = offload::kBlockAlignment / size_of(DType::kFloat32);

// That a block takes of the matrix buffer.
int64_t matrix_numel(const MatrixBlock& block) {
  return (block.numel() + kLineNumel - 1) / kLineNumel * kLineNumel;
}

// What each rank owns of a bucket, [W], shape by shape and in the order of the bucket.
std::vector<std::vector<OwnedBlock>> owned_of(const StepPlan& plan, const SubGroupPlan& group,
                                              const Bucket& bucket) {
  std::vector<std::vector<OwnedBlock>> owned(plan.options.world_size);
  for (int b = bucket.begin; b < bucket.end; ++b) owned[group.blocks[b].owner].push_back({b, 0});
  for (std::vector<OwnedBlock>& blocks : owned) {
    std::stable_sort(blocks.begin(), blocks.end(), [&](const auto& a, const auto& b) {
      return group.blocks[a.block].newton_schulz < group.blocks[b.block].newton_schulz;
    });
    int64_t offset = 0;
    for (OwnedBlock& o : blocks) {
      o.matrix_offset = offset;
      offset += matrix_numel(group.blocks[o.block].block);
    }
  }
  return owned;
}

// Whether `next` goes on where `piece` ends, at the same distances; then it is joined to it.
bool joins(RoutePiece& piece, const RoutePiece& next) {
  StridedRun& run = piece.run;
  const int64_t in_shard = next.run.shard_offset - run.shard_offset;
  const int64_t in_matrix =
      next.matrix_offset + next.run.block_offset - piece.matrix_offset - run.block_offset;
  const int64_t shard_stride = run.count == 1 ? in_shard : run.shard_stride;
  const int64_t block_stride = run.count == 1 ? in_matrix : run.block_stride;
  const bool is_there = next.run.length == run.length && in_shard == run.count * shard_stride &&
                        in_matrix == run.count * block_stride;
  const bool at_its_distances = next.run.count == 1 || (next.run.shard_stride == shard_stride &&
                                                        next.run.block_stride == block_stride);
  if (!is_there || !at_its_distances) return false;
  RoutePiece joined = piece;
  if (joined.step == 0) joined.step = next.block - piece.block_of(run.count - 1);
  const bool of_its_block = joined.block_of(run.count) == next.block &&
                            (joined.first_line + run.count) % joined.lines == next.first_line;
  if (!of_its_block) return false;
  joined.run.shard_stride = shard_stride;
  joined.run.block_stride = block_stride;
  joined.run.count += next.run.count;
  piece = joined;
  return true;
}

// Appends the pieces of what an owner has that lie in `rank`'s shard; returns the bytes.
int64_t append_segment(const StepPlan& plan, const SubGroupPlan& group,
                       const std::vector<OwnedBlock>& owned, int rank, int64_t wire_offset,
                       std::vector<RoutePiece>& pieces) {
  const int64_t element_bytes = size_of(plan.options.wire_dtype);
  const int64_t begin = wire_offset;
  const size_t first = pieces.size();
  wire_offset += kSegmentAlignment;
  for (const OwnedBlock& o : owned) {
    const PlannedBlock& planned = group.blocks[o.block];
    const BlockLines lines = group.layout.lines(planned.block);
    for (const StridedRun& run : group.layout.runs(planned.block, rank)) {
      const RoutePiece piece{.run = run,
                             .wire_offset = wire_offset,
                             .matrix_offset = o.matrix_offset,
                             .block = o.block,
                             .lines = lines.count,
                             .first_line = run.block_offset / lines.length};
      wire_offset += run.numel() * element_bytes;
      const bool may_join =
          pieces.size() > first && group.blocks[pieces.back().block].kind() == planned.kind();
      if (!may_join || !joins(pieces.back(), piece)) pieces.push_back(piece);
    }
  }
  return offload::aligned(wire_offset - begin);
}

void add_to_shape(BucketRoute& route, int newton_schulz, int64_t matrix_offset) {
  auto& shapes = route.owned_shapes;
  const auto same = std::find_if(shapes.begin(), shapes.end(), [&](const OwnedShape& shape) {
    return shape.newton_schulz == newton_schulz;
  });
  OwnedShape& shape = same == shapes.end() ? shapes.emplace_back() : *same;
  shape.newton_schulz = newton_schulz;
  shape.matrix_offsets.push_back(matrix_offset);
}

// Where segments of such sizes begin, with their flags.
std::vector<int64_t> flag_offsets(const std::vector<int64_t>& segment_bytes) {
  std::vector<int64_t> offsets(segment_bytes.size());
  std::exclusive_scan(segment_bytes.begin(), segment_bytes.end(), offsets.begin(), int64_t{0});
  return offsets;
}

// Newton-Schulz of the owned matrices, and on a GPU their way from the wire and back:
// kernels of some runs each, and two for the flag words.
offload::Cost newton_schulz_cost(const StepPlan& plan, const SubGroupPlan& group,
                                 const BucketRoute& route) {
  offload::Cost cost;
  if (!plan.options.target.cuda) {
    for (const OwnedBlock& owned : route.owned) cost.flops += group.blocks[owned.block].flops;
    return cost;
  }
  for (const OwnedShape& shape : route.owned_shapes) {
    const ops::DeviceWork work = ops::newton_schulz_work(
        plan.newton_schulz[shape.newton_schulz], static_cast<int64_t>(shape.matrix_offsets.size()));
    cost.flops += work.flops;
    cost.device_bytes += work.bytes;
    cost.launches += work.launches;
  }
  const int64_t each_way = size_of(plan.options.wire_dtype) + size_of(DType::kFloat32);
  int64_t runs = 0;
  for (const RoutePiece& piece : route.owner_pieces) {
    runs += piece.run.count;
    cost.device_bytes += 2 * each_way * piece.run.count * piece.run.length;
  }
  cost.launches += 2 * ((runs + ops::kRunsOfALaunch - 1) / ops::kRunsOfALaunch) + 2;
  return cost;
}

}  // namespace

BucketRoute route_of(const StepPlan& plan, int sub_group, int bucket_index, int rank) {
  const SubGroupPlan& group = plan.sub_groups[sub_group];
  const Bucket& bucket = group.buckets[bucket_index];
  const std::vector<std::vector<OwnedBlock>> owned = owned_of(plan, group, bucket);
  BucketRoute route;
  route.owned = owned[rank];
  for (const OwnedBlock& o : route.owned) {
    add_to_shape(route, group.blocks[o.block].newton_schulz, o.matrix_offset);
    route.matrix_numel += matrix_numel(group.blocks[o.block].block);
  }
  int64_t shard_offset = 0, owner_offset = 0;
  for (int peer = 0; peer < plan.options.world_size; ++peer) {
    route.shard_bytes.push_back(
        append_segment(plan, group, owned[peer], rank, shard_offset, route.shard_pieces));
    route.owner_bytes.push_back(
        append_segment(plan, group, owned[rank], peer, owner_offset, route.owner_pieces));
    shard_offset += route.shard_bytes.back();
    owner_offset += route.owner_bytes.back();
  }
  for (RoutePiece& piece : route.shard_pieces) {
    piece.packed_offset = route.shard_numel;
    route.shard_numel += piece.run.numel();
  }
  for (OwnedShape& shape : route.owned_shapes) {
    const bool takes_lanes = plan.newton_schulz[shape.newton_schulz].takes_lanes();
    const int count = static_cast<int>(shape.matrix_offsets.size());
    shape.lanes = takes_lanes ? std::min(plan.options.lanes, count) : 1;
  }
  route.shard_flags = flag_offsets(route.shard_bytes);
  route.owner_flags = flag_offsets(route.owner_bytes);
  route.newton_schulz = newton_schulz_cost(plan, group, route);
  return route;
}

namespace {

// Of one bucket.
int64_t bytes_of(offload::SlotBuffer buffer, const StepPlan& plan, const BucketRoute& route) {
  using enum offload::SlotBuffer;
  switch (buffer) {
    case kShardWire:
    case kExchange:
      return total(route.shard_bytes);
    case kOwnerWire:
      return total(route.owner_bytes);
    case kLowPrecision:
      return kCastBytes * route.shard_numel;
    case kGradient:
      return size_of(DType::kFloat32) * route.shard_numel;
    case kMomentum:
      return size_of(plan.options.flow.momentum_dtype) * route.shard_numel;
  }
  return 0;
}

void raise(int64_t& size, int64_t to) { size = std::max(size, to); }

void grow(offload::BufferSizes& sizes, const StepPlan& plan, const BucketRoute& route) {
  for (const StageRow& row : plan.stages.bucket()) {
    for (const auto buffer : row.buffers) raise(sizes.slot[buffer], bytes_of(buffer, plan, route));
  }
  raise(sizes.matrix_numel, route.matrix_numel);
  for (const OwnedShape& shape : route.owned_shapes) {
    const int64_t one = plan.newton_schulz[shape.newton_schulz].scratch_numel;
    raise(sizes.scratch_numel, shape.lanes * one);
  }
}

}  // namespace

offload::BufferSizes buffer_sizes(const StepPlan& plan, int rank) {
  offload::BufferSizes sizes;
  int buckets = 0;
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = plan.sub_groups[g];
    buckets += static_cast<int>(group.buckets.size());
    for (size_t k = 0; k < group.buckets.size(); ++k) {
      grow(sizes, plan, route_of(plan, static_cast<int>(g), static_cast<int>(k), rank));
    }
  }
  sizes.slots = std::clamp(buckets, 1, plan.options.slots);
  for (const StageRow& row : plan.stages.adamw) {
    if (row.buffers.empty()) continue;
    sizes.adamw_low_precision_bytes = kAdamWWorkers * kCastBytes * adamw_chunk_numel(plan.options);
  }
  (plan.options.flow.staged ? sizes.host_alarm_bytes : sizes.device_alarm_bytes) =
      kAdamWWorkers * kFlagBytes;
  const int64_t world = plan.options.world_size;
  sizes.record_bytes = 2 * world * kRecordBytes;
  sizes.word_bytes =
      sizes.record_bytes + kFlagBytes * (sizes.slots * words_per_slot(world) + kAdamWWorkers);
  sizes.pins_words = plan.options.flow.staged || plan.options.target.cuda;
  return sizes;
}

int64_t adamw_chunk_numel(const PlanOptions& options) {
  const bool on_gpu = options.target.cuda && !options.flow.staged;
  return on_gpu ? int64_t{1} << 24 : int64_t{1} << 20;
}

// Joins what touches and decays alike, then cuts it.
std::vector<AdamWChunk> adamw_chunks(const StepPlan& plan, int sub_group, int rank) {
  const SubGroupPlan& group = plan.sub_groups[sub_group];
  const int64_t most = adamw_chunk_numel(plan.options);
  std::vector<AdamWChunk> ranges, chunks;
  if (group.role != Role::kAdamW) return chunks;
  for (size_t p = 0; p < group.layout.params().size(); ++p) {
    const ShardRange real = group.layout.real_range(static_cast<int>(p), rank);
    if (real.numel == 0) continue;
    const bool joins = !ranges.empty() && ranges.back().decay == group.decay[p] &&
                       ranges.back().range.offset + ranges.back().range.numel == real.offset;
    if (joins) {
      ranges.back().range.numel += real.numel;
    } else {
      ranges.push_back({real, group.decay[p]});
    }
  }
  for (const auto& [range, decay] : ranges) {
    for (int64_t done = 0; done < range.numel; done += most) {
      chunks.push_back({{range.offset + done, std::min(most, range.numel - done)}, decay});
    }
  }
  return chunks;
}

}  // namespace zeromuon::zero3
