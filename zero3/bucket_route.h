// What one rank sends and receives for one bucket: pure data, derived from the plan.
//
// A segment is what one shard holds of the blocks of one owner. It starts with a flag word (see
// Note [Flag word]), then the runs of those blocks, block by block, in the wire dtype. The first
// all-to-all carries segments from shards to owners, the second carries them back: same sizes, same
// order.
//
// Note [Flag word]
// 0: all values of the segment's sender are finite. Otherwise 1 + the index, within the sub-group,
// of the first block in which the sender met a NaN or an infinity. Every rank sends its word to
// every rank, also where there is no payload, so all ranks decide alike without a further
// collective.
#pragma once

#include <cstdint>
#include <vector>

#include "offload/slot_sizes.h"
#include "zero3/step_plan.h"

namespace zeromuon::zero3 {

using FlagWord = uint64_t;
constexpr int64_t kFlagBytes = sizeof(FlagWord);

// One run on its way between a flat shard and an owner's matrix.
struct RoutePiece {
  StridedRun run;
  int block = 0;              // index in the sub-group
  int64_t wire_offset = 0;    // bytes into the shard side's or the owner side's buffer
  int64_t matrix_offset = 0;  // owner side: elements into the matrix buffer, where the block begins
};

struct OwnedBlock {
  int block = 0;
  int64_t matrix_offset = 0;  // elements into the matrix buffer, a multiple of a cache line
};

struct BucketRoute {
  std::vector<int64_t> shard_bytes;      // [W] segment between this rank's shard and each owner
  std::vector<int64_t> owner_bytes;      // [W] segment between each shard and this rank as owner
  std::vector<RoutePiece> shard_pieces;  // of this rank's shard
  std::vector<RoutePiece> owner_pieces;  // of the blocks that this rank owns, peer after peer
  std::vector<OwnedBlock> owned;
  int64_t matrix_numel = 0;  // of all owned blocks
};

BucketRoute route_of(const StepPlan& plan, int sub_group, int bucket, int rank);

// The buffers that serve every bucket of a plan on one rank.
offload::SlotSizes slot_sizes(const StepPlan& plan, int rank);

}  // namespace zeromuon::zero3
