// Carries out a StepPlan on one rank: checks what it is given, conducts it, and refuses to go on
// after a step that broke half way.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/placement.h"
#include "zero3/step/step_call.h"
#include "zero3/step/step_resources.h"

namespace zeromuon::zero3 {

// Thread: one call at a time, from one thread; every rank calls with the same sub-groups in the
// same order.
class StepExecutor {
 public:
  // placement: what the plan's flow says, with devices. bodies: of the stages of the plan, which
  // may have more than those of stages_of(). Raises ValueError when these do not fit together.
  StepExecutor(StepPlan plan, const offload::Placement& placement, offload::Backend backend,
               std::unique_ptr<comm::Collectives> collectives, StepLimits limits = {},
               StageBodies bodies = product_bodies());

  // Gives up the buffers that an aborted collective still uses.
  ~StepExecutor();

  const StepPlan& plan() const { return resources_.plan; }
  const Counters& counters() const { return record_.counters; }
  const comm::Traffic& traffic() const { return resources_.collectives->traffic(); }
  const offload::StepBuffers& buffers() const { return *resources_.buffers; }

  // [numel] zeros of host memory that the device's copies reach without the driver's own buffers,
  // as those of the step; it may outlive the executor. See memory_warning().
  at::Tensor registered_zeros(int64_t numel, at::ScalarType type);
  // Why host memory of the step stays pageable, for people; "": it does not, or nothing is copied.
  std::string memory_warning() const;

  // Steps some sub-groups: the next ones, see next_sub_group(). Raises ValueError when they are
  // others or a tensor is not what the plan expects (nothing is changed then), and StepError, on
  // every rank with the same cause, when a value is not finite on any rank or a stage fails.
  void step(std::span<const SubGroupTask> tasks);

  // What step() must begin with. A step is one pass over all sub-groups.
  int next_sub_group() const { return next_sub_group_; }
  int64_t steps() const { return steps_; }  // that came to their end

  // What ended a step half way; "": nothing. Until recover() every step raises it.
  const std::string& poisoned() const { return poison_; }
  // The caller's own part of a step failed. The first cause stays.
  void poison(const std::string& what);
  // Weights and states were loaded anew: what went wrong before is past. All ranks, together.
  // Raises StepError when the process group is gone.
  void recover();

  void record_trace(bool on) { record_.traces = on; }
  std::vector<TraceEvent> take_trace() { return std::exchange(record_.trace, {}); }

 private:
  void check_tensor(int sub_group, const char* what, const at::Tensor& tensor, at::ScalarType type,
                    c10::Device device) const;
  void check(const MuonTask& task) const;
  void check(const AdamWTask& task) const;
  void check_low_precision(int sub_group, const at::Tensor& tensor) const;
  void check_sub_group(int sub_group, Role role) const;
  StepCall call_of(std::span<const SubGroupTask> tasks) const;
  void run(const StepCall& call);
  [[noreturn]] void fail(const std::string& what);
  std::string progress() const;

  offload::Placement placement_;
  StepResources resources_;
  StepLimits limits_;
  StepRecord record_;
  boost::asio::io_context io_;

  int64_t steps_ = 0;
  int next_sub_group_ = 0;
  std::string poison_;
  std::string zeros_warning_;  // of registered_zeros()
  bool group_gone_ = false;    // aborted: no collective can follow
};

}  // namespace zeromuon::zero3
