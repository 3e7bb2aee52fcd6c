// One writer per format of DeepSpeed.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

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

// From which DeepSpeed ZeRO-3 resumes. Raises FormatError, and ValueError for a world size below 1.
void write_zero3(const OptimizerPlan& plan, const Zero3Target& target, const RunOptions& run,
                 OutputReport& report);

// output: the folder itself; `latest_universal` is written beside it. what: for the journal.
void write_universal(const OptimizerPlan& plan, const std::string& output, const std::string& what,
                     const RunOptions& run, OutputReport& report);

// The root of the source's model file `file`, with the sub-groups `groups`, the scheduler of
// `plan`, and what older DeepSpeeds leave out and today's read. changed: the node of another key,
// or kNoNode to copy its value.
NodeId model_root(TorchFileWriter& writer, const OptimizerPlan& plan,
                  const std::vector<SubGroup>& groups, const TorchFile& file,
                  const std::function<NodeId(std::string_view key, NodeId value)>& changed = {});

}  // namespace zeromuon::convert
