// What one call of the executor is told, as addresses; and what is noted of it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "csrc/ops/arrays.h"
#include "zero3/step/step_fault.h"
#include "zero3/step/step_types.h"

namespace zeromuon::zero3 {

// Of a sub-group's tensors, see MuonShard and AdamWShard. low_precision without data: not written.
struct MuonCall {
  int sub_group;
  float* weight;
  const float* gradient;
  std::byte* momentum;
  ops::Typed low_precision;
  MuonHyperParameters hyper;
};

struct AdamWCall {
  int sub_group;
  float* weight;
  const float* gradient;
  float *exp_avg, *exp_avg_sq;
  ops::Typed low_precision;
  AdamWHyperParameters hyper;
};

// In rising order of sub-groups, each of them.
struct StepCall {
  std::vector<MuonCall> muon;
  std::vector<AdamWCall> adamw;
};

// Of the values that stand in param_groups and may change from step to step: equal on all ranks, or
// their weights part.
uint64_t digest_of_values(const StepCall& call);

// What calls did, for counters, errors and traces.
struct StepRecord {
  Counters counters;
  std::vector<Change> changes;  // of the step
  bool traces = false;
  std::vector<TraceEvent> trace;
};

struct StepLimits {
  // A lane that has work and finishes none for so long fails the step; 0: it may.
  std::chrono::milliseconds stage_timeout{0};
  // Gets the state of every lane then, at once: the lane may never come back.
  std::function<void(const std::string&)> diagnose = [](const std::string&) {};
};

}  // namespace zeromuon::zero3
