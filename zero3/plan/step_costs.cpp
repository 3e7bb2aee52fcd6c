#include "zero3/plan/step_costs.h"

#include <algorithm>

namespace zeromuon::zero3 {
namespace {

using offload::Cost;
using offload::MomentumHome;

constexpr int64_t kFloatBytes = 4, kCastBytes = 2;

// Either exchange moves both of these to or from others: one way each, at the same time.
int64_t wire_bytes(const BucketRoute& route, int rank) {
  const auto of_others = [rank](const std::vector<int64_t>& segment_bytes) {
    return total(segment_bytes) - segment_bytes[rank];
  };
  return std::max(of_others(route.shard_bytes), of_others(route.owner_bytes));
}

double owned_flops(const SubGroupPlan& group, const BucketRoute& route) {
  double flops = 0;
  for (const OwnedBlock& owned : route.owned) flops += group.blocks[owned.block].flops;
  return flops;
}

// Bytes per element that go to the device before the gather, and come back after the scatter.
int64_t bytes_down(const Flow& flow, int64_t wire) {
  if (flow.momentum == MomentumHome::kShard) return wire;
  return kFloatBytes +
         (flow.momentum == MomentumHome::kStreamed ? size_of(flow.momentum_dtype) : 0);
}
int64_t bytes_up(const Flow& flow, int64_t wire) {
  return wire + (flow.momentum == MomentumHome::kStreamed ? size_of(flow.momentum_dtype) : 0);
}

}  // namespace

offload::Cost bucket_cost(const StepPlan& plan, const SubGroupPlan& group, const BucketRoute& route,
                          int rank, Stage stage) {
  const Flow& flow = plan.options.flow;
  const int64_t n = route.shard_numel, wire = size_of(plan.options.wire_dtype);
  const int64_t stored = size_of(flow.momentum_dtype);
  switch (stage) {
    case Stage::kMomentum:
      if (flow.staged && flow.momentum != MomentumHome::kShard) return {};
      return {.dram_bytes = n * (kFloatBytes + 2 * stored + wire)};
    case Stage::kToDevice:
      return {.dram_bytes = 0, .link_bytes = n * bytes_down(flow, wire)};
    case Stage::kGather:
    case Stage::kScatter:
      return {.wire_bytes = wire_bytes(route, rank)};
    case Stage::kNewtonSchulz:
      return {.flops = owned_flops(group, route)};
    case Stage::kToHost:
      return {.link_bytes = n * bytes_up(flow, wire)};
    case Stage::kApply:
      return {.dram_bytes = n * (2 * kFloatBytes + wire + (flow.casts_weights ? kCastBytes : 0))};
    case Stage::kWeightsToDevice:
      return cast_weights_cost(n);
    case Stage::kAdamW:
    case Stage::kClosing:
      return {};
  }
  return {};
}

offload::Cost adamw_cost(const StepPlan& plan, int64_t numel) {
  const int64_t cast = plan.options.flow.casts_weights ? kCastBytes : 0;
  // Weight and two states, read and written, and the gradient.
  return {.dram_bytes = numel * (7 * kFloatBytes + cast)};
}

offload::Cost cast_weights_cost(int64_t numel) { return {.link_bytes = numel * kCastBytes}; }

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
