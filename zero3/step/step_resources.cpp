#include "zero3/step/step_resources.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

template <typename Bodies>
void check_bodies(const std::vector<StageRow>& rows, const Bodies& bodies) {
  for (const StageRow& row : rows) {
    require(bodies.count(row.body) > 0, "stage ", row.stage, ": the plan wants \"", row.body,
            "\" done, and the executor was given no body of that name");
  }
}

void check(const StepResources& made) {
  const int world = made.collectives->world_size();
  require(world == made.plan.options.world_size, "the process group has ", world,
          " ranks, the plan was made for ", made.plan.options.world_size);
  require(made.backend.staged() == made.plan.options.flow.staged,
          "the plan was made for another placement: staged is ", made.plan.options.flow.staged);
  const StageTable& stages = made.plan.stages;
  check_bodies(stages.to_owner, made.bodies.bucket);
  check_bodies(stages.on_owner, made.bodies.bucket);
  check_bodies(stages.to_shard, made.bodies.bucket);
  check_bodies(stages.adamw, made.bodies.chunk);
}

}  // namespace

StepResources make_resources(StepPlan plan, offload::Backend backend,
                             std::unique_ptr<comm::Collectives> collectives, StageBodies bodies) {
  StepResources made{std::move(plan), std::move(collectives), std::move(backend),
                     std::move(bodies)};
  check(made);
  const int rank = made.collectives->rank(), world = made.collectives->world_size();
  for (const ops::NewtonSchulzPlan& shape : made.plan.newton_schulz) {
    made.newton_schulz.emplace_back(shape, made.backend.compute->products());
  }
  size_t most_owned = 0;
  for (size_t g = 0; g < made.plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = made.plan.sub_groups[g];
    std::vector<BucketRoute>& routes = made.routes.emplace_back();
    std::vector<RunStorage>& runs = made.runs.emplace_back();
    for (int k = 0; k < static_cast<int>(group.buckets.size()); ++k) {
      routes.push_back(route_of(made.plan, static_cast<int>(g), k, rank));
      runs.emplace_back(routes.back());
      most_owned = std::max(most_owned, routes.back().owned.size());
    }
    made.adamw_chunks.push_back(adamw_chunks(made.plan, static_cast<int>(g), rank));
  }
  const offload::BufferSizes sizes = buffer_sizes(made.plan, rank);
  made.buffers = std::make_unique<offload::StepBuffers>(sizes, made.backend);
  made.owned_matrices.reserve(most_owned);
  std::byte* const words = made.buffers->words();
  std::memset(words, 0, static_cast<size_t>(sizes.word_bytes));
  made.records = {words, static_cast<size_t>(sizes.record_bytes)};
  auto* const flags = reinterpret_cast<FlagWord*>(words + sizes.record_bytes);
  const auto of_slots = static_cast<size_t>(sizes.slots * words_per_slot(world));
  made.slot_words = {flags, of_slots};
  made.adamw_alarms = {flags + of_slots, kAdamWWorkers};
  return made;
}

}  // namespace zeromuon::zero3
