// What the stages of a bucket and of a chunk do: the bodies of their tasks, by the names that the
// rows of a plan give them.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "csrc/comm/collectives.h"
#include "offload/backend.h"
#include "offload/slots.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/collective_schedule.h"
#include "zero3/step/step_call.h"

namespace zeromuon::zero3 {

// What Newton-Schulz works with; shared by all buckets, whose turns come one after the other.
struct NewtonSchulzBench {
  std::span<const ops::NewtonSchulz> shapes;
  float *matrices, *scratch;
  std::vector<float*>& owned;  // list of the matrices at hand
};

// What a task of a bucket makes its runs in; made at bind, so that a step allocates nothing.
struct RunStorage {
  std::vector<ops::Run> runs;
  std::vector<ops::ApplyElement> elements;

  explicit RunStorage(const BucketRoute& route);
};

// One bucket of one call, in its slot. Each function but exchange() is the body that a row of the
// plan's table names (StageRow::body), and knows nothing of the flow; its memory is that which the
// row says. Sizes and offsets come from the route.
// Thread: one task of a bucket at a time.
struct BucketStages {
  const StepPlan& plan;
  const SubGroupPlan& group;
  const BucketRoute& route;
  offload::Backend& backend;
  const MuonCall& call;
  const offload::Slot& slot;
  const NewtonSchulzBench& bench;
  RunStorage& work;
  FlagWord* alarm;  // of the host: gets the code of the first block whose weight is not finite

  // Gradient and momentum of the shard -> shard wire.
  void momentum_on_shard() const;
  void wire_to_device() const;  // shard wire -> exchange
  void gradient_to_device() const;
  // Gradient in the slot and momentum on the device -> exchange.
  void momentum_on_device() const;
  void gradient_and_momentum_to_device() const;
  // Gradient and momentum in the slot -> exchange.
  void momentum_streamed() const;
  // Owner wire -> Newton-Schulz -> owner wire.
  void orthogonalize() const;
  void update_to_host() const;  // exchange -> shard wire
  void update_and_momentum_to_host() const;
  // Shard wire -> weights, and their cast, to where it lies or to the slot.
  void apply() const;
  void apply_through_slot() const;
  void weights_to_device() const;  // casts in the slot -> the compute device

  // failed: this rank cannot go on, and says so. words: [W], gets every peer's flag.
  void exchange(comm::Collectives& collectives, Direction direction, bool failed,
                std::span<FlagWord> words) const;

 private:
  struct MomentumSource;
  std::byte* low() const { return static_cast<std::byte*>(call.low_precision.data); }
  void mix(const MomentumSource& source, std::byte* out) const;
  void update_weights(bool through_slot) const;
  void unpack_matrices() const;
  void pack_updates() const;
};

// One chunk of an AdamW sub-group in one call.
// Thread: one task of a chunk at a time.
struct ChunkStages {
  offload::Backend& backend;
  const AdamWCall& call;
  const AdamWChunk& chunk;
  FlagWord* word;      // of the shard's memory
  FlagWord* alarm;     // of the host: not 0 when a weight or a moment is not finite
  std::byte* staging;  // pinned, of the chunk's worker; null where casts need no way to the device

  // The weight's cast goes to where it lies, or to `staging`.
  void adamw() const;
  void adamw_through_slot() const;
  void weights_to_device() const;

 private:
  std::byte* low() const;  // of the chunk; null: not written
  void adamw(std::byte* low) const;
};

struct StageBodies {
  std::map<std::string, std::function<void(const BucketStages&)>> bucket;
  std::map<std::string, std::function<void(const ChunkStages&)>> chunk;
};

// All that stages_of() names.
StageBodies product_bodies();

}  // namespace zeromuon::zero3
