// What a step that breaks on some rank leaves behind on each.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tests/zero3/step/pipeline_runs.h"

namespace zeromuon::zero3 {

// What the text of a StepError says that was changed: sets of "sub-group G" and "sub-group G bucket
// B".
struct Claims {
  std::set<std::string> applied, applied_in_doubt, casts_in_doubt, advanced, advanced_in_doubt;
};

// A StepError's text up to " (seen from rank"; the whole text where there is none.
std::string cause_of(const std::string& error);
Claims claims_of(const std::string& error);

// A step on every rank of `way` that is expected to break, and what comes after it.
struct Breakdown {
  std::vector<std::string> errors;   // per rank: of the first step; "": it went through
  std::vector<RankTensors> tensors;  // per rank: after it
  std::vector<std::string> again;    // per rank: of a second step
  std::vector<std::string> diagnoses;
  // Per rank: of a step after recover() with tensors as at the beginning.
  std::vector<std::string> recovery;
  std::vector<RankTensors> recovered;
};

struct Attempt {
  Way way;
  int victim = 1;  // the rank that the way's faults happen on
  std::chrono::milliseconds stage_timeout{0};
  std::function<void(RankTensors&)> spoil = {};  // the victim's tensors, before the first step
  std::function<void(StepPlan&)> plan = {};      // changes the plan
};

Breakdown break_down(const Attempt& attempt);

// "" when the tensors of a rank are what its claims say: where neither applied nor in doubt, those
// of `before`, where applied, those of `after`. Else what is untrue.
std::string untruth(const Way& way, int rank, const Claims& claims, const RankTensors& before,
                    const RankTensors& after, const RankTensors& got);

}  // namespace zeromuon::zero3
