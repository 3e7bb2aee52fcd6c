// The stages of a bucket, as data. Where the momentum lives, whether two memories are joined by a
// link, and where cast weights go decide the rows of one table, made with the plan. Everything else
// reads them: the pipeline, the sizes of buffers, costs, the texts of errors, the plan's own text.
#pragma once

#include <array>
#include <vector>

#include "csrc/base/dtype.h"
#include "offload/lane.h"
#include "offload/momentum_home.h"
#include "offload/slot_sizes.h"

namespace zeromuon::zero3 {

// Low-precision weights that a step writes: none, or where they lie.
enum class CastWeights : uint8_t { kNone, kWithShard, kOnDevice };

// What crosses between the memories of the flat shard and of the compute device.
struct Flow {
  bool staged = false;  // whether they are two
  offload::MomentumHome momentum = offload::MomentumHome::kShard;
  DType momentum_dtype = DType::kFloat32;
  CastWeights casts = CastWeights::kNone;
};

// What a stage leaves changed when the step breaks after it.
enum class Changes : uint8_t { kNothing, kMomentum, kWeights, kCasts };
const char* name_of(Changes changes);

// What a stage takes of the machine on one rank. Bytes: per element of the rank's part of the
// bucket, and only what the work itself reads and writes: a kernel its arrays, a copy the link.
struct StageCost {
  int64_t dram_bytes = 0, link_bytes = 0, device_bytes = 0;
  bool exchanges = false;   // and all of the bucket's segments that others send or get
  bool multiplies = false;  // and Newton-Schulz of the matrices that the rank owns
};

// Strings are static. stage: in errors, traces and counters. body: which function of BucketStages
// or ChunkStages does it.
struct StageRow {
  const char* stage;
  const char* body;
  offload::LaneKind lane;
  offload::Urgency urgency;
  StageCost cost = {};
  std::vector<offload::SlotBuffer> buffers = {};
  Changes changes = Changes::kNothing;
  // The next row needs its effects on the compute device only: where lanes have streams, the host
  // need not wait between the two.
  bool hands_over = false;
};

// In the order in which a bucket goes through them.
struct StageTable {
  std::vector<StageRow> to_owner;  // of the shard, before the first exchange
  StageRow gather;
  std::vector<StageRow> on_owner;  // between the exchanges
  StageRow scatter;
  std::vector<StageRow> to_shard;  // after the second
  std::vector<StageRow> adamw;     // of a chunk of an AdamW sub-group
  StageRow closing;                // of a call
  int slots;                       // buckets in flight that keep every lane busy

  // All of a bucket's, in order.
  std::vector<StageRow> bucket() const;
};

// shard_on_gpu: the flat shard is in the memory of a GPU that computes.
StageTable stages_of(const Flow& flow, DType wire, bool shard_on_gpu);

// The names of all stages of all flows.
inline constexpr std::array kStageNames = {
    "momentum", "to_device", "gather_to_owner", "newton_schulz",     "scatter_to_shards",
    "to_host",  "apply",     "adamw",           "weights_to_device", "closing"};

}  // namespace zeromuon::zero3
