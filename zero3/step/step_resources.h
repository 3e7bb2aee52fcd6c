// What serves every call of one rank; made at bind.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "csrc/comm/collectives.h"
#include "offload/backend.h"
#include "offload/slots.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/step/bucket_stages.h"

namespace zeromuon::zero3 {

struct StepResources {
  StepPlan plan;
  std::unique_ptr<comm::Collectives> collectives;
  offload::Backend backend;
  StageBodies bodies;
  std::vector<ops::NewtonSchulz> newton_schulz = {};       // one per shape
  std::vector<std::vector<BucketRoute>> routes = {};       // per sub-group and bucket
  std::vector<std::vector<RunStorage>> runs = {};          // of each route
  std::vector<std::vector<AdamWChunk>> adamw_chunks = {};  // per sub-group
  std::unique_ptr<offload::StepBuffers> buffers = {};
  std::vector<float*> owned_matrices = {};  // of one shape, while Newton-Schulz runs
  // What is read of the devices, in the buffers' words.
  std::span<std::byte> records = {};      // [2 * W * kRecordBytes]: to all ranks, and from them
  std::span<FlagWord> slot_words = {};    // [slots][words_per_slot]
  std::span<FlagWord> adamw_alarms = {};  // [workers]

  // [W], of the last exchange of a slot.
  std::span<FlagWord> flags(int slot) const {
    return words_of(slot).first(static_cast<size_t>(plan.options.world_size));
  }
  FlagWord* alarm(int slot) const { return &words_of(slot).back(); }

 private:
  std::span<FlagWord> words_of(int slot) const {
    const auto each = static_cast<size_t>(words_per_slot(plan.options.world_size));
    return slot_words.subspan(slot * each, each);
  }
};

// Raises ValueError when plan, backend and group do not fit together, and when a stage of the plan
// has no body.
StepResources make_resources(StepPlan plan, offload::Backend backend,
                             std::unique_ptr<comm::Collectives> collectives, StageBodies bodies);

}  // namespace zeromuon::zero3
