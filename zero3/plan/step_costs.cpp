#include "zero3/plan/step_costs.h"

#include <algorithm>

namespace zeromuon::zero3 {
namespace {

using offload::Cost;

// Either exchange moves both of these to or from others: one way each, at the same time.
int64_t wire_bytes(const BucketRoute& route, int rank) {
  const auto of_others = [rank](const std::vector<int64_t>& segment_bytes) {
    return total(segment_bytes) - segment_bytes[rank];
  };
  return std::max(of_others(route.shard_bytes), of_others(route.owner_bytes));
}

}  // namespace

Cost bucket_cost(const StageRow& row, const BucketRoute& route, int rank) {
  Cost cost = row.cost.multiplies ? route.newton_schulz : chunk_cost(row, route.shard_numel);
  if (row.cost.exchanges) cost.wire_bytes = wire_bytes(route, rank);
  return cost;
}

Cost newton_schulz_cost(const StepPlan& plan, int rank) {
  Cost cost;
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    for (size_t k = 0; k < plan.sub_groups[g].buckets.size(); ++k) {
      const Cost one = route_of(plan, static_cast<int>(g), static_cast<int>(k), rank).newton_schulz;
      cost.flops += one.flops;
      cost.device_bytes += one.device_bytes;
      cost.launches += one.launches;
    }
  }
  return cost;
}

Cost chunk_cost(const StageRow& row, int64_t numel) {
  return {.dram_bytes = numel * row.cost.dram_bytes,
          .link_bytes = numel * row.cost.link_bytes,
          .device_bytes = numel * row.cost.device_bytes};
}

Cost closing_cost(int world_size) { return {.wire_bytes = (world_size - 1) * kRecordBytes}; }

std::array<double, offload::kLaneKinds> busy_seconds(const StepPlan& plan, int rank,
                                                     const offload::Rates& rates) {
  std::array<double, offload::kLaneKinds> seconds{};
  const auto add = [&](const StageRow& row, const Cost& cost) {
    seconds[static_cast<int>(row.lane)] += seconds_of(cost, row.lane, rates);
  };
  const std::vector<StageRow> rows = plan.stages.bucket();
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = plan.sub_groups[g];
    for (size_t k = 0; k < group.buckets.size(); ++k) {
      const BucketRoute route = route_of(plan, static_cast<int>(g), static_cast<int>(k), rank);
      for (const StageRow& row : rows) add(row, bucket_cost(row, route, rank));
    }
    for (const AdamWChunk& chunk : adamw_chunks(plan, static_cast<int>(g), rank)) {
      for (const StageRow& row : plan.stages.adamw) add(row, chunk_cost(row, chunk.range.numel));
    }
  }
  add(plan.stages.closing, closing_cost(plan.options.world_size));
  return seconds;
}

int64_t framing_bytes(const StepPlan& plan, int rank) {
  const int64_t wire = size_of(plan.options.wire_dtype);
  int64_t bytes = plan.options.world_size * kRecordBytes;
  for (size_t g = 0; g < plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = plan.sub_groups[g];
    for (size_t k = 0; k < group.buckets.size(); ++k) {
      const BucketRoute route = route_of(plan, static_cast<int>(g), static_cast<int>(k), rank);
      bytes += total(route.shard_bytes) - wire * route.shard_numel + total(route.owner_bytes);
      for (const OwnedBlock& o : route.owned) bytes -= wire * group.blocks[o.block].block.numel();
    }
  }
  return bytes;
}

}  // namespace zeromuon::zero3
