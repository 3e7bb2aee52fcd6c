// Carries out a StepPlan on one rank: checks what it is given, runs it through the pipeline, and
// refuses to go on after a step that broke half way.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/placement.h"
#include "zero3/step/step_pipeline.h"

namespace zeromuon::zero3 {

// Thread: one call at a time, from one thread; every rank calls with the same sub-groups in the
// same order.
class StepExecutor {
 public:
  // placement: what the plan's flow says, with devices. Raises ValueError when plan, placement,
  // backend and group do not fit together.
  StepExecutor(StepPlan plan, const offload::Placement& placement, offload::Backend backend,
               std::unique_ptr<comm::Collectives> collectives, StepLimits limits = {});

  // Gives up the buffers that an aborted collective still uses.
  ~StepExecutor();

  const StepPlan& plan() const { return resources_.plan; }
  const Counters& counters() const { return record_.counters; }
  const comm::Traffic& traffic() const { return resources_.collectives->traffic(); }
  const offload::StepBuffers& buffers() const { return *resources_.buffers; }

  // Steps some sub-groups, in rising order, each once. Raises ValueError when a tensor is not what
  // the plan expects (nothing is changed then), and StepError, on every rank with the same cause,
  // when a value is not finite on any rank or a stage fails.
  void step(std::span<const SubGroupTask> tasks);

  // Weights and states were loaded anew: what went wrong before is past. All ranks, together.
  void recover();

  void record_trace(bool on) { record_.traces = on; }
  std::vector<TraceEvent> take_trace() { return std::exchange(record_.trace, {}); }

  // The parts of step(): what it makes of its tasks, and the rest.
  StepCall begin(std::span<const SubGroupTask> tasks);
  void run(const StepCall& call);
  // The parts of run(), for many ranks in one io_context.
  std::unique_ptr<StepPipeline> pipeline(boost::asio::io_context& io, const StepCall& call);
  void end(const StepPipeline& pipeline);
  [[noreturn]] void poison(const std::string& what);

 private:
  void check_tensor(int sub_group, const char* what, const at::Tensor& tensor, at::ScalarType type,
                    c10::Device device) const;
  void check(const MuonTask& task) const;
  void check(const AdamWTask& task) const;
  void check_low_precision(int sub_group, const at::Tensor& tensor) const;
  void check_sub_group(int sub_group, Role role) const;
  MuonCall call_of(const MuonTask& task) const;
  AdamWCall call_of(const AdamWTask& task) const;
  std::string progress() const;

  offload::Placement placement_;
  StepResources resources_;
  StepLimits limits_;
  StepRecord record_;
  boost::asio::io_context io_;

  int64_t step_ = 0;
  int last_sub_group_ = -1;
  std::string poison_;
  bool group_gone_ = false;  // aborted: no collective can follow
};

}  // namespace zeromuon::zero3
