// The model files of a ZeRO-3 or universal output.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "zero3/convert/optimizer_plan.h"

namespace zeromuon::convert {

// The root of the source's `file`, with the sub-groups `groups`, the scheduler of `plan`, and what
// older DeepSpeeds leave out and today's read. changed: the node of another key, or kNoNode to copy
// its value.
formats::NodeId model_root(
    formats::TorchFileWriter& writer, const Checkpoint& source, const OptimizerPlan& plan,
    const std::vector<FlatGroup>& groups, const formats::TorchFile& file,
    const std::function<formats::NodeId(std::string_view key, formats::NodeId value)>& changed =
        {});

}  // namespace zeromuon::convert
