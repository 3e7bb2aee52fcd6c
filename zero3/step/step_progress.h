// What a step that broke had changed, for people.
#pragma once

#include <span>
#include <string>

#include "zero3/plan/stages.h"

namespace zeromuon::zero3 {

// A task that changes weights or states: begun, and perhaps finished.
struct Change {
  Changes what;
  int sub_group, bucket;  // bucket -1: a chunk of an AdamW sub-group
  bool finished;
};

// changes: of one step, in the order in which they were begun. adamw_chunks: per sub-group. What
// was begun and is not known to be finished is in doubt: it may be done, in part, or not at all.
std::string progress_text(std::span<const Change> changes, std::span<const size_t> adamw_chunks);

}  // namespace zeromuon::zero3
