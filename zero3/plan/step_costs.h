// What the stages of a bucket take of the machine, for lanes that turn it into time.
#pragma once

#include "offload/lane.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/stage.h"

namespace zeromuon::zero3 {

// rank: whose route it is. Stages that the plan's flow has no use for cost nothing.
offload::Cost bucket_cost(const StepPlan& plan, const SubGroupPlan& group, const BucketRoute& route,
                          int rank, Stage stage);

// AdamW on `numel` elements with fp32 gradients and states: 32 bytes of host memory each, and 2 for
// a cast weight.
offload::Cost adamw_cost(const StepPlan& plan, int64_t numel);
offload::Cost cast_weights_cost(int64_t numel);

// Bytes that a rank sends in a step of one call beside the elements themselves: flag words, what
// aligns the segments, and the records with which the call ends.
int64_t framing_bytes(const StepPlan& plan, int rank);

}  // namespace zeromuon::zero3
