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

bool through_slot(const Flow& flow) { return flow.staged && flow.casts == CastWeights::kOnDevice; }

StageRow momentum_on_shard(const Bytes& b, LaneKind shard_lane, SlotBuffer out) {
  return {"momentum",
          "momentum_on_shard",
          shard_lane,
          Urgency::kUrgent,
          touched(shard_lane, b.mixing()),
          {out},
          Changes::kMomentum};
}

// Copies to the device are filler: what ends a life goes before what begins one, and frees buffers.
StageRow to_device(const char* body, int64_t bytes, std::vector<SlotBuffer> buffers) {
  return {"to_device",       body, LaneKind::kToDevice, Urgency::kFiller, {.link_bytes = bytes},
          std::move(buffers)};
}

// In the stream of the copies: behind an earlier Newton-Schulz it would hold up the gather of all.
StageRow momentum_on_device(const char* body, const Bytes& b, std::vector<SlotBuffer> buffers,
                            Changes changes) {
  return {"momentum",
          body,
          LaneKind::kToDevice,
          Urgency::kUrgent,
          {.device_bytes = b.mixing()},
          std::move(buffers),
          changes};
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
  StageRow row{"to_host",        "update_to_host",       LaneKind::kToHost,
               Urgency::kUrgent, {.link_bytes = b.wire}, {kExchange, kShardWire}};
  if (flow.momentum != MomentumHome::kStreamed) return row;
  row.body = "update_and_momentum_to_host";
  row.cost.link_bytes += b.momentum;
  row.buffers.push_back(kMomentum);
  row.changes = Changes::kMomentum;
  return row;
}

StageRow weights_to_device(const Bytes& b) {
  return {"weights_to_device",    "weights_to_device", LaneKind::kToDevice, Urgency::kUrgent,
          {.link_bytes = b.cast}, {kLowPrecision},     Changes::kCasts};
}

std::vector<StageRow> to_shard(const Flow& flow, const Bytes& b, LaneKind shard_lane) {
  std::vector<StageRow> rows;
  if (flow.staged) rows.push_back(to_host(flow, b));
  // The weight is read and written, the update read, the cast written.
  StageRow apply{"apply",
                 "apply",
                 shard_lane,
                 Urgency::kUrgent,
                 touched(shard_lane, 2 * kFloat + b.wire + b.cast),
                 {flow.staged ? kShardWire : kExchange},
                 Changes::kWeights};
  if (through_slot(flow)) {
    apply.body = "apply_through_slot";
    apply.buffers.push_back(kLowPrecision);
  }
  rows.push_back(apply);
  if (through_slot(flow)) rows.push_back(weights_to_device(b));
  return rows;
}

// Chunks fill what Muon leaves of their lane. Weight and two states are read and written, the
// gradient read, the cast written.
std::vector<StageRow> adamw(const Flow& flow, const Bytes& b, LaneKind shard_lane) {
  std::vector<StageRow> rows = {{"adamw",
                                 "adamw",
                                 shard_lane,
                                 Urgency::kFiller,
                                 touched(shard_lane, 7 * kFloat + b.cast),
                                 {},
                                 Changes::kWeights}};
  if (!through_slot(flow)) return rows;
  rows[0].body = "adamw_through_slot";
  rows[0].buffers.push_back(kLowPrecision);
  rows.push_back(weights_to_device(b));
  return rows;
}

StageRow collective(const char* stage, std::vector<SlotBuffer> buffers) {
  return {stage,
          "exchange",
          LaneKind::kCollective,
          Urgency::kUrgent,
          {.exchanges = true},
          std::move(buffers)};
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
  return {flow.staged ? staged_to_owner(flow, b)
                      : std::vector{momentum_on_shard(b, shard_lane, kExchange)},
          collective("gather_to_owner", {kExchange, kOwnerWire}),
          {{"newton_schulz",
            "newton_schulz",
            LaneKind::kCompute,
            Urgency::kUrgent,
            {.multiplies = true},
            {kOwnerWire}}},
          collective("scatter_to_shards", {kOwnerWire, kExchange}),
          to_shard(flow, b, shard_lane),
          adamw(flow, b, shard_lane),
          collective("closing", {}),
          flow.staged ? kStagedSlots : kSlots};
}

}  // namespace zeromuon::zero3
