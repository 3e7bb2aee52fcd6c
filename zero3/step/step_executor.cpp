#include "zero3/step/step_executor.h"

#include <ATen/ops/from_blob.h>

#include <boost/asio/co_spawn.hpp>
#include <chrono>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/step/conductor.h"

namespace zeromuon::zero3 {
namespace {

float* floats_of(const at::Tensor& t) { return static_cast<float*>(t.data_ptr()); }
std::byte* bytes_of(const at::Tensor& t) { return static_cast<std::byte*>(t.data_ptr()); }

at::ScalarType type_of(DType dtype) {
  if (dtype == DType::kFloat16) return at::kHalf;
  return dtype == DType::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

ops::Typed low_of(const at::Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr(), t.scalar_type() == at::kHalf ? DType::kFloat16 : DType::kBFloat16};
}

int sub_group_of(const SubGroupTask& task) {
  return std::visit([](const auto& t) { return t.sub_group; }, task);
}

}  // namespace

StepExecutor::StepExecutor(StepPlan plan, const offload::Placement& placement,
                           offload::Backend backend, std::unique_ptr<comm::Collectives> collectives,
                           StepLimits limits, StageBodies bodies)
    : placement_(placement),
      resources_(make_resources(std::move(plan), std::move(backend), std::move(collectives),
                                std::move(bodies))),
      limits_(std::move(limits)) {
  require(resources_.plan.options.target.cuda == placement.compute.is_cuda(),
          "the plan was made for ", resources_.plan.options.target.full_name(),
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
  const CastWeights casts = resources_.plan.options.flow.casts;
  require(casts != CastWeights::kNone, "sub-group ", sub_group,
          ": low-precision weights are given, and the plan was made without");
  require(type == at::kBFloat16 || type == at::kHalf, "sub-group ", sub_group,
          ": the low-precision weight is ", type, ", expected BFloat16 or Half");
  check_tensor(sub_group, "the low-precision weight", tensor, type,
               casts == CastWeights::kWithShard ? placement_.shard : placement_.compute);
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

StepCall StepExecutor::call_of(std::span<const SubGroupTask> tasks) const {
  StepCall call;
  for (const SubGroupTask& task : tasks) {
    if (const auto* muon = std::get_if<MuonTask>(&task)) {
      const MuonShard& t = muon->shard;
      call.muon.push_back({muon->sub_group, floats_of(t.weight), floats_of(t.gradient),
                           bytes_of(t.momentum), low_of(t.low_precision), muon->hyper});
    } else {
      const auto& adamw = std::get<AdamWTask>(task);
      const AdamWShard& t = adamw.shard;
      call.adamw.push_back({adamw.sub_group, floats_of(t.weight), floats_of(t.gradient),
                            floats_of(t.exp_avg), floats_of(t.exp_avg_sq), low_of(t.low_precision),
                            adamw.hyper});
    }
  }
  return call;
}

void StepExecutor::step(std::span<const SubGroupTask> tasks) {
  require(!tasks.empty(), "a step needs at least one sub-group");
  if (!poison_.empty()) {
    throw StepError(concat("the optimizer is poisoned by an earlier failure: ", poison_));
  }
  int expected = next_sub_group_;
  for (const SubGroupTask& task : tasks) {
    std::visit([&](const auto& t) { check(t); }, task);
    require(sub_group_of(task) == expected, "sub-group ", sub_group_of(task), " comes where ",
            expected, " is next; sub-groups are stepped in rising order, each once");
    ++expected;
  }
  if (next_sub_group_ == 0) record_.changes.clear();
  run(call_of(tasks));
  next_sub_group_ = expected % static_cast<int>(resources_.plan.sub_groups.size());
  if (next_sub_group_ == 0) ++steps_;
}

void StepExecutor::run(const StepCall& call) {
  const auto start = std::chrono::steady_clock::now();
  resources_.backend.compute->wait_for_caller();
  Conductor conductor(io_, resources_, call, limits_, record_);
  io_.restart();
  std::exception_ptr broken;
  {
    const auto busy = boost::asio::make_work_guard(io_);
    bool done = false;
    boost::asio::co_spawn(io_, conductor.run(), [&](const std::exception_ptr& error) {
      done = true;
      broken = error;
    });
    while (!done) io_.run_one();
  }
  io_.run();  // what only ends
  group_gone_ = group_gone_ || conductor.broken();
  record_.counters.wall_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (broken) fail(text_of(broken));
  if (conductor.fault()) fail(conductor.fault()->what);
}

void StepExecutor::fail(const std::string& what) {
  const char* remedy = group_gone_
                           ? ", and the process group is aborted: start all ranks again from a "
                             "checkpoint"
                           : ": load a checkpoint with its optimizer states to go on";
  poison(concat("step ", steps_ + 1, ", ", what, " (seen from rank ",
                resources_.collectives->rank(), ": ", progress(),
                "). Weights and states are between two steps", remedy));
  throw StepError(poison_);
}

void StepExecutor::poison(const std::string& what) {
  if (poison_.empty()) poison_ = what;
}

std::string StepExecutor::progress() const {
  std::vector<size_t> chunks;
  for (const auto& of_group : resources_.adamw_chunks) chunks.push_back(of_group.size());
  return progress_text(record_.changes, chunks);
}

at::Tensor StepExecutor::registered_zeros(int64_t numel, at::ScalarType type) {
  const int64_t bytes = numel * static_cast<int64_t>(c10::elementSize(type));
  auto arena = std::make_shared<offload::PinnedArena>(offload::PinnedArena::needed({bytes}),
                                                      resources_.backend.registrar,
                                                      resources_.backend.first_touch);
  if (zeros_warning_.empty()) zeros_warning_ = arena->warning();
  std::byte* const data = arena->take(bytes).data;  // fresh pages, zeros
  return at::from_blob(
      data, {numel}, [arena](void*) {}, at::TensorOptions().dtype(type));
}

std::string StepExecutor::memory_warning() const {
  const std::string of_buffers = resources_.buffers->warning();
  return of_buffers.empty() ? zeros_warning_ : of_buffers;
}

void StepExecutor::recover() {
  if (group_gone_) throw StepError(poison_);
  poison_.clear();
  next_sub_group_ = 0;
}

}  // namespace zeromuon::zero3
