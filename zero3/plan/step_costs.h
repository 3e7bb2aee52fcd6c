// What the stages of a plan take of the machine, and how long at given rates. See Note [Bytes] in
// docs/memory.md.
#pragma once

#include <array>

#include "offload/rates.h"
#include "zero3/plan/bucket_route.h"

namespace zeromuon::zero3 {

// Of a row on one bucket. rank: whose route it is.
offload::Cost bucket_cost(const StageRow& row, const BucketRoute& route, int rank);

// Of a rank's Newton-Schulz in a step, all buckets.
offload::Cost newton_schulz_cost(const StepPlan& plan, int rank);

// Of a row on `numel` elements of an AdamW sub-group.
offload::Cost chunk_cost(const StageRow& row, int64_t numel);

// Of the exchange that ends a call.
offload::Cost closing_cost(int world_size);

// Of a step in one call, how long each lane of a rank is busy: no schedule is shorter than the
// longest of them.
std::array<double, offload::kLaneKinds> busy_seconds(const StepPlan& plan, int rank,
                                                     const offload::Rates& rates);

// Bytes that a rank sends in a step of one call beside the elements themselves: flag words, what
// aligns the segments, and the records with which the call ends.
int64_t framing_bytes(const StepPlan& plan, int rank);

}  // namespace zeromuon::zero3
