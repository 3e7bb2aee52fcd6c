#include "zero3/played/played_step.h"

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <optional>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/step/conductor.h"

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

// Bodies are not run, so there are no tensors: only what tasks cost.
class Rank {
 public:
  Rank(const StepPlan& plan, offload::Backend backend, int rank)
      : resources_(
            make_resources(plan, std::move(backend),
                           std::make_unique<VirtualCollectives>(rank, plan.options.world_size),
                           product_bodies())) {
    record_.traces = true;
  }

  // Sub-groups [begin, end).
  void start(boost::asio::io_context& io, int begin, int end) {
    call_ = {};
    for (int g = begin; g < end; ++g) {
      if (resources_.plan.sub_groups[g].role == Role::kMuon) {
        call_.muon.emplace_back().sub_group = g;
      } else {
        call_.adamw.emplace_back().sub_group = g;
      }
    }
    conductor_.emplace(io, resources_, call_, limits_, record_);
    done_ = false;
    boost::asio::co_spawn(io, conductor_->run(), [this](const std::exception_ptr& error) {
      if (error) std::rethrow_exception(error);
      done_ = true;
    });
  }
  bool done() const { return done_; }
  std::vector<TraceEvent> take_trace() { return std::exchange(record_.trace, {}); }

 private:
  StepResources resources_;
  StepLimits limits_;
  StepRecord record_;
  StepCall call_;
  std::optional<Conductor> conductor_;
  bool done_ = false;
};

void play(boost::asio::io_context& io, std::vector<std::unique_ptr<Rank>>& ranks,
          offload::VirtualClock& clock, int begin, int end) {
  for (auto& rank : ranks) rank->start(io, begin, end);
  const auto all_done = [&] {
    return std::all_of(ranks.begin(), ranks.end(), [](const auto& r) { return r->done(); });
  };
  for (;;) {
    io.restart();
    while (io.poll() > 0) io.restart();
    if (all_done()) break;
    invariant(clock.advance(), "the played step came to a standstill at ", clock.now_ns(), " ns");
  }
}

void measure(PlayedStep& step) {
  for (size_t rank = 0; rank < step.events.size(); ++rank) {
    std::array<double, offload::kLaneKinds> busy{};
    for (const TraceEvent& event : step.events[rank]) {
      busy[static_cast<int>(event.lane)] +=
          1e-9 * static_cast<double>(event.end_ns - event.begin_ns);
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
  const int groups = static_cast<int>(plan.sub_groups.size()), together = fused ? groups : 1;
  for (int g = 0; g < groups; g += together) play(io, ranks, clock, g, g + together);
  PlayedStep step;
  step.makespan_s = 1e-9 * static_cast<double>(clock.now_ns());
  for (int r = 0; r < world; ++r) {
    step.events.push_back(ranks[r]->take_trace());
    int64_t sent = 0;
    for (int g = 0; g < groups; ++g) {
      for (int k = 0; k < static_cast<int>(plan.sub_groups[g].buckets.size()); ++k) {
        const BucketRoute route = route_of(plan, g, k, r);
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
