#include "zero3/played/played_step.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "csrc/base/check.h"
#include "zero3/step/step_executor.h"

namespace zeromuon::zero3 {
namespace {

// Knows who is who; its exchanges are played by the fabric.
class VirtualCollectives final : public comm::Collectives {
 public:
  VirtualCollectives(int rank, int world) : rank_(rank), world_(world) {}
  int rank() const override { return rank_; }
  int world_size() const override { return world_; }
  std::string abort(const std::string& cause) override { return cause; }

 private:
  void do_all_to_all_v(const comm::Exchange&) override {
    throw_internal_error("virtual collectives were given work");
  }
  int rank_, world_;
};

class Rank {
 public:
  Rank(const StepPlan& plan, offload::Backend backend, int rank)
      : memory_(backend.compute->allocate(bytes_of(plan))),
        executor_(plan, placement(plan), std::move(backend),
                  std::make_unique<VirtualCollectives>(rank, plan.options.world_size)) {
    executor_.record_trace(true);
    for (size_t g = 0; g < plan.sub_groups.size(); ++g) add_task(plan, static_cast<int>(g));
  }

  void start(boost::asio::io_context& io, std::span<const SubGroupTask> tasks) {
    call_ = executor_.begin(tasks);
    // The weights' copies are on the device.
    for (MuonCall& muon : call_.muon) muon.shard.low_with_shard = false;
    for (AdamWCall& adamw : call_.adamw) adamw.low_with_shard = false;
    running_ = executor_.pipeline(io, call_);
    boost::asio::co_spawn(io, running_->run(), [this](const std::exception_ptr& error) {
      if (error) std::rethrow_exception(error);
      done_ = true;
    });
    done_ = false;
  }
  bool done() const { return done_; }
  void end() { executor_.end(*running_); }
  std::span<const SubGroupTask> tasks() const { return tasks_; }
  std::vector<TraceEvent> take_trace() { return executor_.take_trace(); }

 private:
  static int64_t bytes_of(const StepPlan& plan) {
    int64_t most = 1;
    for (const SubGroupPlan& group : plan.sub_groups)
      most = std::max(most, group.layout.shard_numel());
    return 4 * most;
  }
  static offload::Placement placement(const StepPlan& plan) {
    const c10::Device cpu(c10::kCPU);
    return {cpu, plan.options.target.cuda ? c10::Device(c10::kCUDA, 0) : cpu,
            plan.options.flow.momentum, plan.options.flow.momentum_dtype};
  }
  void add_task(const StepPlan& plan, int g) {
    const int64_t numel = plan.sub_groups[g].layout.shard_numel();
    const auto tensor_on = [&](c10::Device device, at::ScalarType type) {
      return at::for_blob(memory_.get(), {numel})
          .target_device(device)
          .options(at::TensorOptions(device).dtype(type))
          .make_tensor();
    };
    const offload::Placement where = placement(plan);
    const auto tensor = [&](at::ScalarType type) { return tensor_on(where.shard, type); };
    const at::Tensor floats = tensor(at::kFloat);
    const at::Tensor low = plan.options.flow.casts_weights ? tensor(at::kBFloat16) : at::Tensor();
    if (plan.sub_groups[g].role == Role::kMuon) {
      const bool away = where.momentum == offload::MomentumHome::kDevice;
      const bool half = where.momentum_dtype == DType::kBFloat16;
      const at::Tensor momentum =
          tensor_on(away ? where.compute : where.shard, half ? at::kBFloat16 : at::kFloat);
      tasks_.push_back(
          MuonTask{g, {floats, floats, momentum, low}, {0, 0, 0, ops::MomentumKind::kEma, true}});
    } else {
      tasks_.push_back(AdamWTask{g, {floats, floats, floats, floats, low}, {0, 0, 0, 0, 1, 1}});
    }
  }

  offload::Memory memory_;  // addresses only
  StepExecutor executor_;
  std::vector<SubGroupTask> tasks_;
  StepCall call_;
  std::unique_ptr<StepPipeline> running_;
  bool done_ = false;
};

void play(boost::asio::io_context& io, std::vector<std::unique_ptr<Rank>>& ranks,
          offload::VirtualClock& clock, size_t begin, size_t count) {
  for (auto& rank : ranks) rank->start(io, rank->tasks().subspan(begin, count));
  const auto all_done = [&] {
    return std::all_of(ranks.begin(), ranks.end(), [](const auto& r) { return r->done(); });
  };
  for (;;) {
    io.restart();
    while (io.poll() > 0) io.restart();
    if (all_done()) break;
    invariant(clock.advance(), "the played step came to a standstill at ", clock.now_ns(), " ns");
  }
  for (auto& rank : ranks) rank->end();
}

void measure(PlayedStep& step) {
  for (size_t rank = 0; rank < step.events.size(); ++rank) {
    std::array<double, offload::kLaneKinds> busy{};
    for (const TraceEvent& event : step.events[rank]) {
      busy[event.lane] += 1e-9 * static_cast<double>(event.end_ns - event.begin_ns);
    }
    for (int lane = 0; lane < offload::kLaneKinds; ++lane) {
      if (busy[lane] <= step.lower_bound_s) continue;
      step.lower_bound_s = busy[lane];
      step.busiest = concat(name_of(static_cast<offload::LaneKind>(lane)), " of rank ", rank);
    }
  }
}

}  // namespace

PlayedStep play_step(const StepPlan& plan, const offload::Rates& rates, bool fused) {
  const int world = plan.options.world_size;
  offload::VirtualClock clock;
  offload::VirtualFabric fabric(clock, world);
  boost::asio::io_context io;  // outlives the pipelines of the ranks
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int r = 0; r < world; ++r) {
    ranks.push_back(
        std::make_unique<Rank>(plan, offload::make_virtual_backend(clock, fabric, r, rates), r));
  }
  const size_t groups = plan.sub_groups.size(), together = fused ? groups : 1;
  for (size_t g = 0; g < groups; g += together) play(io, ranks, clock, g, together);
  PlayedStep step;
  step.makespan_s = 1e-9 * static_cast<double>(clock.now_ns());
  for (int r = 0; r < world; ++r) {
    step.events.push_back(ranks[r]->take_trace());
    int64_t sent = 0;
    for (size_t g = 0; g < groups; ++g) {
      for (int k = 0; k < static_cast<int>(plan.sub_groups[g].buckets.size()); ++k) {
        const BucketRoute route = route_of(plan, static_cast<int>(g), k, r);
        sent += total(route.shard_bytes) - route.shard_bytes[r] + total(route.owner_bytes) -
                route.owner_bytes[r];
      }
    }
    step.wire_bytes.push_back(sent);
  }
  measure(step);
  return step;
}

}  // namespace zeromuon::zero3
