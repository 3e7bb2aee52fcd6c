// Plays a step of all ranks on a virtual clock: the same plan, coroutines and slots as a real one,
// with rates in place of work.
#pragma once

#include <vector>

#include "zero3/plan/step_plan.h"
#include "zero3/played/virtual_backend.h"
#include "zero3/step/step_types.h"

namespace zeromuon::zero3 {

struct PlayedStep {
  double makespan_s = 0;
  // The longest that a lane of any rank is busy: no schedule of the same tasks is shorter.
  double lower_bound_s = 0;
  std::string busiest;                          // that lane and its rank
  std::vector<std::vector<TraceEvent>> events;  // per rank
  std::vector<int64_t> wire_bytes;              // sent to others, per rank
};

// plan: staged. fused: all sub-groups in one call; else one after the other. Raises InternalError
// when the step comes to a standstill.
PlayedStep play_step(const StepPlan& plan, const offload::Rates& rates, bool fused);

}  // namespace zeromuon::zero3
