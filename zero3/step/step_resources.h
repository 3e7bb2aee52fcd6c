// What serves every call of one rank; made at bind.
#pragma once

#include <memory>
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
  std::vector<std::vector<AdamWChunk>> adamw_chunks = {};  // per sub-group
  std::unique_ptr<offload::StepBuffers> buffers = {};
  std::vector<float*> owned_matrices = {};        // of one shape, while Newton-Schulz runs
  std::vector<std::vector<FlagWord>> flags = {};  // [slots][W], of the last exchange of a slot
  std::vector<std::byte> records = {};  // [2 * W * kRecordBytes]: to all ranks, and from them
};

// Raises ValueError when plan, backend and group do not fit together, and when a stage of the plan
// has no body.
StepResources make_resources(StepPlan plan, offload::Backend backend,
                             std::unique_ptr<comm::Collectives> collectives, StageBodies bodies);

}  // namespace zeromuon::zero3
