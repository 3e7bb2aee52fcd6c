// Writes checkpoints that DeepSpeed ZeRO-3 resumes from.
#pragma once

#include <string>

#include "zero3/convert/optimizer_plan.h"
#include "zero3/convert/verbs.h"

namespace zeromuon::convert {

struct Zero3Target {
  std::string output;  // gets `tag`/ and `latest`
  std::string tag;
  int world_size = 1;
  int64_t sub_group_size = 0;
  std::string what;  // verb and options, for the journal
};

// Of DeepSpeed, where a checkpoint's configuration says nothing.
constexpr int64_t kDefaultSubGroupSize = 1'000'000'000;

// Raises FormatError, and ValueError for a world size below 1.
void write_zero3(const Checkpoint& source, const OptimizerPlan& plan, const Zero3Target& target,
                 const RunOptions& run, OutputReport& report);

}  // namespace zeromuon::convert
