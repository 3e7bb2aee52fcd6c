#include "zero3/step/step_executor.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <chrono>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/step/step_progress.h"

namespace zeromuon::zero3 {
namespace {

float* floats_of(const at::Tensor& t) { return static_cast<float*>(t.data_ptr()); }
std::byte* bytes_of(const at::Tensor& t) { return static_cast<std::byte*>(t.data_ptr()); }

at::ScalarType type_of(DType dtype) {
  if (dtype == DType::kFloat16) return at::kHalf;
  return dtype == DType::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

DType low_dtype_of(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf ? DType::kFloat16 : DType::kBFloat16;
}

// The real elements of a sub-group on a rank, joined where they touch and decay alike, in chunks.
std::vector<AdamWChunk> adamw_chunks(const SubGroupPlan& group, int rank) {
  std::vector<AdamWChunk> ranges, chunks;
  for (size_t p = 0; p < group.layout.params().size(); ++p) {
    const ShardRange real = group.layout.real_range(static_cast<int>(p), rank);
    if (real.numel == 0) continue;
    const bool joins = !ranges.empty() && ranges.back().decay == group.decay[p] &&
                       ranges.back().range.offset + ranges.back().range.numel == real.offset;
    if (joins) {
      ranges.back().range.numel += real.numel;
    } else {
      ranges.push_back({real, group.decay[p]});
    }
  }
  for (const auto& [range, decay] : ranges) {
    for (int64_t done = 0; done < range.numel; done += kAdamWChunkNumel) {
      const int64_t numel = std::min(kAdamWChunkNumel, range.numel - done);
      chunks.push_back({{range.offset + done, numel}, decay});
    }
  }
  return chunks;
}

StepResources make_resources(StepPlan plan, offload::Backend backend,
                             std::unique_ptr<comm::Collectives> collectives) {
  StepResources made{
      std::move(plan), std::move(collectives), std::move(backend), {}, {}, {}, {}, {}, {}, {}};
  const int rank = made.collectives->rank(), world = made.collectives->world_size();
  require(world == made.plan.options.world_size, "the process group has ", world,
          " ranks, the plan was made for ", made.plan.options.world_size);
  require(made.backend.staged() == made.plan.options.flow.staged,
          "the plan was made for another placement: staged is ", made.plan.options.flow.staged);
  for (const ops::NewtonSchulzPlan& shape : made.plan.newton_schulz) {
    made.newton_schulz.emplace_back(shape, made.backend.compute->products());
  }
  size_t most_owned = 0;
  for (size_t g = 0; g < made.plan.sub_groups.size(); ++g) {
    const SubGroupPlan& group = made.plan.sub_groups[g];
    std::vector<BucketRoute>& routes = made.routes.emplace_back();
    for (int k = 0; k < static_cast<int>(group.buckets.size()); ++k) {
      routes.push_back(route_of(made.plan, static_cast<int>(g), k, rank));
      most_owned = std::max(most_owned, routes.back().owned.size());
    }
    made.adamw_chunks.push_back(group.role == Role::kAdamW ? adamw_chunks(group, rank)
                                                           : std::vector<AdamWChunk>{});
  }
  made.buffers =
      std::make_unique<offload::StepBuffers>(buffer_sizes(made.plan, rank), made.backend);
  made.owned_matrices.reserve(most_owned);
  made.flags.assign(made.buffers->slots().size(), std::vector<FlagWord>(world));
  made.records.resize(2 * world * kRecordBytes);
  return made;
}

}  // namespace

StepExecutor::StepExecutor(StepPlan plan, const offload::Placement& placement,
                           offload::Backend backend, std::unique_ptr<comm::Collectives> collectives,
                           StepLimits limits)
    : placement_(placement),
      resources_(make_resources(std::move(plan), std::move(backend), std::move(collectives))),
      limits_(std::move(limits)) {
  require(resources_.plan.options.target.cuda == placement.compute.is_cuda(),
          "the plan was made for ", resources_.plan.options.target.name(),
          ", and Newton-Schulz runs on ", placement.compute.str(),
          "; make the plan for that device");
}

StepExecutor::~StepExecutor() {
  if (resources_.collectives->pending()) static_cast<void>(resources_.buffers.release());
}

void StepExecutor::check_sub_group(int sub_group, Role role) const {
  const auto& groups = resources_.plan.sub_groups;
  require(0 <= sub_group && sub_group < static_cast<int>(groups.size()), "sub-group ", sub_group,
          " is not in the plan, which has ", groups.size());
  invariant(groups[sub_group].role == role, "sub-group ", sub_group,
            " was called with the wrong role");
}

void StepExecutor::check_tensor(int sub_group, const char* what, const at::Tensor& tensor,
                                at::ScalarType type, c10::Device device) const {
  const int64_t expected = resources_.plan.sub_groups[sub_group].layout.shard_numel();
  require(tensor.defined(), "sub-group ", sub_group, ": ", what, " is missing");
  require(tensor.numel() == expected && tensor.scalar_type() == type && tensor.is_contiguous() &&
              tensor.device() == device,
          "sub-group ", sub_group, ": ", what, " has ", tensor.numel(), " elements of ",
          tensor.scalar_type(), " on ", tensor.device(), ", the plan expects ", expected,
          " contiguous elements of ", type, " on ", device,
          "; the parameters changed after attach(): call attach() again");
}

void StepExecutor::check_low_precision(int sub_group, const at::Tensor& tensor) const {
  if (!tensor.defined()) return;
  const at::ScalarType type = tensor.scalar_type();
  require(resources_.plan.options.flow.casts_weights, "sub-group ", sub_group,
          ": low-precision weights are given, and the plan was made without");
  require(type == at::kBFloat16 || type == at::kHalf, "sub-group ", sub_group,
          ": the low-precision weight is ", type, ", expected BFloat16 or Half");
  const bool with_shard = tensor.device() == placement_.shard;
  check_tensor(sub_group, "the low-precision weight", tensor, type,
               with_shard ? placement_.shard : placement_.compute);
}

void StepExecutor::check(const MuonTask& task) const {
  check_sub_group(task.sub_group, Role::kMuon);
  const bool away = placement_.momentum == offload::MomentumHome::kDevice;
  check_tensor(task.sub_group, "the master weight", task.shard.weight, at::kFloat,
               placement_.shard);
  check_tensor(task.sub_group, "the gradient", task.shard.gradient, at::kFloat, placement_.shard);
  check_tensor(task.sub_group, "the momentum", task.shard.momentum,
               type_of(placement_.momentum_dtype), away ? placement_.compute : placement_.shard);
  check_low_precision(task.sub_group, task.shard.low_precision);
}

void StepExecutor::check(const AdamWTask& task) const {
  check_sub_group(task.sub_group, Role::kAdamW);
  const AdamWShard& shard = task.shard;
  for (const auto& [what, tensor] : {std::pair{"the master weight", &shard.weight},
                                     {"the gradient", &shard.gradient},
                                     {"exp_avg", &shard.exp_avg},
                                     {"exp_avg_sq", &shard.exp_avg_sq}}) {
    check_tensor(task.sub_group, what, *tensor, at::kFloat, placement_.shard);
  }
  check_low_precision(task.sub_group, shard.low_precision);
  require(task.hyper.step >= 1, "adamw step must count from 1, got ", task.hyper.step);
}

MuonCall StepExecutor::call_of(const MuonTask& task) const {
  const at::Tensor& low = task.shard.low_precision;
  const bool casts = low.defined();
  return {task.sub_group,
          {floats_of(task.shard.weight), floats_of(task.shard.gradient),
           bytes_of(task.shard.momentum), casts ? bytes_of(low) : nullptr,
           casts ? low_dtype_of(low) : DType::kBFloat16, casts && low.device() == placement_.shard},
          task.hyper};
}

AdamWCall StepExecutor::call_of(const AdamWTask& task) const {
  const at::Tensor& low = task.shard.low_precision;
  const bool casts = low.defined();
  return {task.sub_group,
          floats_of(task.shard.weight),
          floats_of(task.shard.gradient),
          floats_of(task.shard.exp_avg),
          floats_of(task.shard.exp_avg_sq),
          casts ? bytes_of(low) : nullptr,
          casts ? low_dtype_of(low) : DType::kBFloat16,
          casts && low.device() == placement_.shard,
          task.hyper};
}

StepCall StepExecutor::begin(std::span<const SubGroupTask> tasks) {
  require(!tasks.empty(), "a step needs at least one sub-group");
  StepCall call;
  int last = -1;
  for (const SubGroupTask& task : tasks) {
    const int sub_group = std::visit([](const auto& t) { return t.sub_group; }, task);
    require(sub_group > last, "sub-group ", sub_group, " comes after ", last,
            "; sub-groups are stepped in rising order, each once");
    last = sub_group;
    std::visit([&](const auto& t) { check(t); }, task);
    if (const auto* muon = std::get_if<MuonTask>(&task)) call.muon.push_back(call_of(*muon));
    if (const auto* adamw = std::get_if<AdamWTask>(&task)) call.adamw.push_back(call_of(*adamw));
  }
  if (!poison_.empty()) {
    throw StepError(concat("the optimizer is poisoned by an earlier failure: ", poison_));
  }
  // Sub-groups come in rising order within a step.
  const int first = std::visit([](const auto& t) { return t.sub_group; }, tasks.front());
  if (first <= last_sub_group_ || step_ == 0) {
    ++step_;
    record_.changes.clear();
  }
  last_sub_group_ = last;
  return call;
}

std::unique_ptr<StepPipeline> StepExecutor::pipeline(boost::asio::io_context& io,
                                                     const StepCall& call) {
  return std::make_unique<StepPipeline>(io, resources_, call, limits_, record_);
}

void StepExecutor::step(std::span<const SubGroupTask> tasks) { run(begin(tasks)); }

void StepExecutor::run(const StepCall& call) {
  const auto start = std::chrono::steady_clock::now();
  resources_.backend.compute->wait_for_caller();
  const auto running = pipeline(io_, call);
  io_.restart();
  std::exception_ptr broken;
  {
    const auto busy = boost::asio::make_work_guard(io_);
    bool done = false;
    boost::asio::co_spawn(io_, running->run(), [&](const std::exception_ptr& error) {
      done = true;
      broken = error;
    });
    while (!done) io_.run_one();
  }
  io_.run();  // what only ends
  group_gone_ = group_gone_ || running->broken();
  if (broken) poison(text_of(broken));
  record_.counters.wall_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  end(*running);
}

void StepExecutor::end(const StepPipeline& pipeline) {
  if (pipeline.fault()) poison(pipeline.fault()->what);
}

void StepExecutor::poison(const std::string& what) {
  const char* remedy = group_gone_
                           ? ", and the process group is aborted: start all ranks again from a "
                             "checkpoint"
                           : ": load a checkpoint with its optimizer states to go on";
  poison_ = concat("step ", step_, ", ", what, " (seen from rank ", resources_.collectives->rank(),
                   ": ", progress(), "). Weights and states are between two steps", remedy);
  throw StepError(poison_);
}

std::string StepExecutor::progress() const {
  std::vector<size_t> chunks;
  for (const auto& of_group : resources_.adamw_chunks) chunks.push_back(of_group.size());
  return progress_text(record_.changes, chunks);
}

void StepExecutor::recover() {
  if (group_gone_) throw StepError(poison_);
  poison_.clear();
  last_sub_group_ = static_cast<int>(resources_.plan.sub_groups.size()) - 1;
}

}  // namespace zeromuon::zero3
