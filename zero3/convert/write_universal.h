// Writes DeepSpeed's universal checkpoints.
#pragma once

#include <string>

#include "zero3/convert/optimizer_plan.h"
#include "zero3/convert/verbs.h"

namespace zeromuon::convert {

// output: the folder itself; `latest_universal` is written beside it. what: for the journal.
void write_universal(const Checkpoint& source, const OptimizerPlan& plan, const std::string& output,
                     const std::string& what, const RunOptions& run, OutputReport& report);

}  // namespace zeromuon::convert
