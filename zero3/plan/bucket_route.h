// What one rank sends and receives for one bucket: pure data, derived from the plan.
//
// A segment is what one shard holds of the blocks of one owner. It starts with a flag word (see
// Note [Flag word]), in a head of its own, then the runs of those blocks, shape by shape and block
// by block, in the wire dtype. Segments and payloads are aligned (kSegmentAlignment): NCCL copies
// what is not in packs of 16 bytes on both sides byte by byte. The first all-to-all carries
// segments from shards to owners, the second carries them back: same sizes, same order.
//
// Note [Flag word]
// 0: all values of the segment's sender are finite. Otherwise 1 + the index, within the sub-group,
// of the first block in which the sender met a NaN or an infinity. Every rank sends its word to
// every rank, also where there is no payload, so all ranks decide alike without a further
// collective.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "offload/lane.h"
#include "offload/slot_sizes.h"
#include "zero3/plan/step_plan.h"

namespace zeromuon::zero3 {

using FlagWord = uint64_t;
constexpr int64_t kFlagBytes = sizeof(FlagWord);
constexpr int64_t kSegmentAlignment = offload::kBlockAlignment;  // of begin, payload and end

// The flag word of a rank that cannot go on, whatever the block.
constexpr FlagWord kFailedFlag = ~FlagWord{0};

// Bytes of all segments.
inline int64_t total(const std::vector<int64_t>& segment_bytes) {
  return std::reduce(segment_bytes.begin(), segment_bytes.end(), int64_t{0});
}

// Runs on their way between a flat shard and an owner's matrices: of one block, or of several of
// one shape that lie at equal distances on both sides. `run`'s offsets into blocks are those into
// the block that it begins in, and go on into the matrices that follow it.
struct RoutePiece {
  StridedRun run;
  int64_t wire_offset = 0;    // bytes into the shard side's or the owner side's buffer
  int64_t matrix_offset = 0;  // elements into the owner's matrix buffer, where the block begins
  int64_t packed_offset = 0;  // shard side: elements of the bucket's pieces before this one
  int block = 0;              // in which it begins: index in the sub-group
  int step = 0;               // to the index of the next block
  int64_t lines = 1;          // of each block
  int64_t first_line = 0;     // of its block

  // In which its run number r is.
  int block_of(int64_t r) const {
    return block + step * static_cast<int>((first_line + r) / lines);
  }
};

struct OwnedBlock {
  int block = 0;
  int64_t matrix_offset = 0;  // elements into the matrix buffer, a multiple of a cache line
};

// Owned blocks of one shape: Newton-Schulz takes them together.
struct OwnedShape {
  int newton_schulz = 0;                // index into StepPlan::newton_schulz
  int lanes = 1;                        // of NewtonSchulz::run
  std::vector<int64_t> matrix_offsets;  // of each, as in OwnedBlock
};

struct BucketRoute {
  std::vector<int64_t> shard_bytes;      // [W] segment between this rank's shard and each owner
  std::vector<int64_t> owner_bytes;      // [W] segment between each shard and this rank as owner
  std::vector<RoutePiece> shard_pieces;  // of this rank's shard
  std::vector<RoutePiece> owner_pieces;  // of the blocks that this rank owns, peer after peer
  std::vector<OwnedBlock> owned;
  std::vector<OwnedShape> owned_shapes;
  std::vector<int64_t> shard_flags, owner_flags;  // [W] bytes into the buffers
  offload::Cost
      newton_schulz;  // of the owned blocks, and on a GPU of their way from the wire and back
  int64_t matrix_numel = 0;  // of all owned blocks
  int64_t shard_numel = 0;   // of this rank's pieces
};

BucketRoute route_of(const StepPlan& plan, int sub_group, int bucket, int rank);

// AdamW ranges are worked on in chunks of at most so many elements, by so many workers: one
// computes while the cast weights of others wait for a bucket's copy on the link. On a GPU, where a
// chunk of the CPU's size would take less time than its launch, they are larger.
int64_t adamw_chunk_numel(const PlanOptions& options);
constexpr int kAdamWWorkers = 8;

// A contiguous range of a flat shard without padding, decayed alike.
struct AdamWChunk {
  ShardRange range;
  bool decay;
};

// The real elements of a sub-group on a rank, in rising order; none of a Muon sub-group.
std::vector<AdamWChunk> adamw_chunks(const StepPlan& plan, int sub_group, int rank);

constexpr int64_t kCastBytes = 2;  // of a low-precision weight

// What the host reads of a bucket in flight: the flag word of each peer, and the alarm.
constexpr int64_t words_per_slot(int64_t world_size) { return world_size + 1; }

// What each rank tells each other when a call ends.
constexpr int64_t kRecordBytes = 512;

// The buffers that serve every bucket of a plan on one rank.
offload::BufferSizes buffer_sizes(const StepPlan& plan, int rank);

}  // namespace zeromuon::zero3
