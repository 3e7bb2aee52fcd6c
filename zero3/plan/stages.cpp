// The one place that knows what depends on the flow.
#include "zero3/plan/stages.h"

#include <utility>

namespace zeromuon::zero3 {
namespace {

using offload::LaneKind;
using offload::MomentumHome;
using offload::SlotBuffer;
using offload::Urgency;
using enum SlotBuffer;

constexpr int kSlots = 3;  // one being filled, one multiplied, one applied
// Two are multiplied, because the matrices of one are not even over the ranks, and results cross
// the link before they are applied.
constexpr int kStagedSlots = 5;

// Bytes of an element.
constexpr int64_t kFloat = 4;
struct Bytes {
  int64_t wire, momentum, cast;                                    // cast: 0 without
  int64_t mixing() const { return kFloat + 2 * momentum + wire; }  // gradient, momentum twice, wire
};

// Of a kernel where the flat shard is.
StageCost touched(LaneKind shard_lane, int64_t bytes) {
  if (shard_lane == LaneKind::kCpu) return {.dram_bytes = bytes};
  return {.device_bytes = bytes};
}

// `body` on `lane`, which goes before fillers.
StageRow urgent(const char* stage, const char* body, LaneKind lane, StageCost cost,
                std::vector<SlotBuffer> buffers, Changes changes = Changes::kNothing) {
  return {stage, body, lane, Urgency::kUrgent, cost, std::move(buffers), changes};
}

StageRow momentum_on_shard(const Bytes& b, LaneKind shard_lane, SlotBuffer out) {
  return urgent("momentum", "momentum_on_shard", shard_lane, touched(shard_lane, b.mixing()), {out},
                Changes::kMomentum);
}

// Copies to the device are filler: what ends a life goes before what begins one, and frees buffers.
StageRow to_device(const char* body, int64_t bytes, std::vector<SlotBuffer> buffers) {
  const StageCost cost{.link_bytes = bytes};
  return {"to_device", body, LaneKind::kToDevice, Urgency::kFiller, cost, std::move(buffers)};
}

// In the stream of the copies: behind an earlier Newton-Schulz it would hold up the gather of all.
StageRow momentum_on_device(const char* body, const Bytes& b, std::vector<SlotBuffer> buffers,
                            Changes changes) {
  return urgent("momentum", body, LaneKind::kToDevice, {.device_bytes = b.mixing()},
                std::move(buffers), changes);
}

// A momentum's change is that of the row that writes to where it is stored.
std::vector<StageRow> staged_to_owner(const Flow& flow, const Bytes& b) {
  switch (flow.momentum) {
    case MomentumHome::kShard:
      return {momentum_on_shard(b, LaneKind::kCpu, kShardWire),
              to_device("wire_to_device", b.wire, {kShardWire, kExchange})};
    case MomentumHome::kDevice:
      return {
          to_device("gradient_to_device", kFloat, {kGradient}),
          momentum_on_device("momentum_on_device", b, {kGradient, kExchange}, Changes::kMomentum)};
    case MomentumHome::kStreamed:
      return {
          to_device("gradient_and_momentum_to_device", kFloat + b.momentum, {kGradient, kMomentum}),
          momentum_on_device("momentum_streamed", b, {kGradient, kMomentum, kExchange},
                             Changes::kNothing)};
  }
  return {};
}

StageRow to_host(const Flow& flow, const Bytes& b) {
  if (flow.momentum != MomentumHome::kStreamed) {
    return urgent("to_host", "update_to_host", LaneKind::kToHost, {.link_bytes = b.wire},
                  {kExchange, kShardWire});
  }
  return urgent("to_host", "update_and_momentum_to_host", LaneKind::kToHost,
                {.link_bytes = b.wire + b.momentum}, {kExchange, kShardWire, kMomentum},
                Changes::kMomentum);
}

StageRow weights_to_device(const Bytes& b) {
  return urgent("weights_to_device", "weights_to_device", LaneKind::kToDevice,
                {.link_bytes = b.cast}, {kLowPrecision}, Changes::kCasts);
}

// The row whose body writes the casts, and where they go through the slot also the one that copies
// them.
std::vector<StageRow> with_casts(const Flow& flow, const Bytes& b, StageRow row,
                                 const char* through) {
  if (!flow.staged || flow.casts != CastWeights::kOnDevice) return {std::move(row)};
  row.body = through;
  row.buffers.push_back(kLowPrecision);
  return {std::move(row), weights_to_device(b)};
}

std::vector<StageRow> to_shard(const Flow& flow, const Bytes& b, LaneKind shard_lane) {
  // The weight is read and written, the update read, the cast written.
  const StageCost cost = touched(shard_lane, 2 * kFloat + b.wire + b.cast);
  std::vector<StageRow> rows =
      with_casts(flow, b,
                 urgent("apply", "apply", shard_lane, cost, {flow.staged ? kShardWire : kExchange},
                        Changes::kWeights),
                 "apply_through_slot");
  if (flow.staged) rows.insert(rows.begin(), to_host(flow, b));
  return rows;
}

// Chunks fill what Muon leaves of their lane. Weight and two states are read and written, the
// gradient read, the cast written.
std::vector<StageRow> adamw(const Flow& flow, const Bytes& b, LaneKind shard_lane) {
  const StageCost cost = touched(shard_lane, 7 * kFloat + b.cast);
  return with_casts(flow, b,
                    {"adamw", "adamw", shard_lane, Urgency::kFiller, cost, {}, Changes::kWeights},
                    "adamw_through_slot");
}

StageRow collective(const char* stage, std::vector<SlotBuffer> buffers) {
  return urgent(stage, "exchange", LaneKind::kCollective, {.exchanges = true}, std::move(buffers));
}

// Of rows before an exchange. After one the host reads the words that it brought, and then the
// alarm of each weight.
std::vector<StageRow> before_exchange(std::vector<StageRow> rows) {
  for (StageRow& row : rows) row.hands_over = row.lane != LaneKind::kCpu;
  return rows;
}

}  // namespace

const char* name_of(Changes changes) {
  constexpr const char* kNames[] = {"nothing", "momentum", "weights", "cast weights"};
  return kNames[static_cast<int>(changes)];
}

std::vector<StageRow> StageTable::bucket() const {
  std::vector<StageRow> rows = to_owner;
  rows.push_back(gather);
  rows.insert(rows.end(), on_owner.begin(), on_owner.end());
  rows.push_back(scatter);
  rows.insert(rows.end(), to_shard.begin(), to_shard.end());
  return rows;
}

StageTable stages_of(const Flow& flow, DType wire, bool shard_on_gpu) {
  const Bytes b{size_of(wire), size_of(flow.momentum_dtype),
                flow.casts == CastWeights::kNone ? 0 : size_of(DType::kBFloat16)};
  const LaneKind shard_lane = shard_on_gpu ? LaneKind::kCompute : LaneKind::kCpu;
  return {before_exchange(flow.staged ? staged_to_owner(flow, b)
                                      : std::vector{momentum_on_shard(b, shard_lane, kExchange)}),
          collective("gather_to_owner", {kExchange, kOwnerWire}),
          before_exchange({urgent("newton_schulz", "newton_schulz", LaneKind::kCompute,
                                  {.multiplies = true}, {kOwnerWire})}),
          collective("scatter_to_shards", {kOwnerWire, kExchange}),
          to_shard(flow, b, shard_lane),
          adamw(flow, b, shard_lane),
          collective("closing", {}),
          flow.staged ? kStagedSlots : kSlots};
}

}  // namespace zeromuon::zero3
