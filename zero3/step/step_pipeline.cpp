#include "zero3/step/step_pipeline.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/plan/step_costs.h"

namespace zeromuon::zero3 {

namespace asio = boost::asio;
using offload::LaneKind;
using offload::Urgency;

const char* name_of(Stage stage) {
  constexpr const char* kNames[kStages] = {
      "momentum", "to_device", "gather_to_owner", "newton_schulz",     "scatter_to_shards",
      "to_host",  "apply",     "adamw",           "weights_to_device", "closing"};
  return kNames[static_cast<int>(stage)];
}

// A slot while a bucket is in flight. Of a step that is given up, the io_context may let go of it
// when there is no pipeline any more.
struct StepPipeline::Lease {
  Lease(const std::shared_ptr<StepPipeline>& pipeline, int slot)
      : index(slot), pipeline_(pipeline) {}
  Lease(Lease&&) = default;
  Lease& operator=(Lease&&) = delete;
  ~Lease() {
    const auto pipeline = pipeline_.lock();
    if (!pipeline) return;
    pipeline->free_slots_.push_back(index);
    pipeline->slot_freed_.notify();
  }

  const int index;

 private:
  std::weak_ptr<StepPipeline> pipeline_;  // empty: moved from
};

StepPipeline::Signal::Signal(asio::io_context& io)
    : timer_(io, asio::steady_timer::time_point::max()) {}

asio::awaitable<void> StepPipeline::Signal::wait() {
  // notify() ends the wait by cancelling it.
  co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
}

StepPipeline::StepPipeline(asio::io_context& io, StepResources& resources, const StepCall& call,
                           const StepLimits& limits, StepRecord& record)
    : io_(io),
      resources_(resources),
      call_(call),
      limits_(limits),
      record_(record),
      slot_freed_(io),
      ticket_passed_(io),
      task_ended_(io),
      watch_timer_(io) {
  for (const MuonCall& muon : call.muon) {
    const int count = static_cast<int>(resources.routes[muon.sub_group].size());
    for (int k = 0; k < count; ++k) buckets_.push_back({&muon, k});
  }
  const int buckets = static_cast<int>(buckets_.size());
  const int slots = static_cast<int>(resources.buffers->slots().size());
  schedule_ = collective_schedule(buckets, slots);
  check_schedule(schedule_, buckets, slots);
  for (int i = slots; i-- > 0;) free_slots_.push_back(i);
}

asio::awaitable<void> StepPipeline::run() {
  for (int k = 0; k < static_cast<int>(buckets_.size()); ++k) spawn(run_bucket(k));
  for (int w = 0; w < kAdamWWorkers; ++w) spawn(adamw_worker(w));
  if (limits_.stage_timeout.count() > 0) asio::co_spawn(io_, watch(), asio::detached);
  while (running_ > 0) co_await task_ended_.wait();
  co_await close();
  done_ = true;
  watch_timer_.cancel();
  check_all_is_back();
}

// The life of one bucket.
asio::awaitable<void> StepPipeline::run_bucket(int number) {
  const Bucket& bucket = buckets_[number];
  const Where where{bucket.sub_group(), bucket.index};
  const StepPlan& plan = resources_.plan;
  const SubGroupPlan& group = plan.sub_groups[bucket.sub_group()];
  const BucketRoute& route = resources_.routes[bucket.sub_group()][bucket.index];

  const Lease lease = co_await acquire_slot(number);
  const BucketStages stages{plan,
                            group,
                            route,
                            resources_.backend,
                            bucket.call->shard,
                            bucket.call->hyper,
                            resources_.buffers->slots()[lease.index]};
  std::vector<FlagWord>& flags = resources_.flags[lease.index];

  co_await gather_momentum(stages, where);
  co_await exchange(stages, where, {number, Direction::kGather}, flags);
  co_await stage(Stage::kNewtonSchulz, where, LaneKind::kCompute,
                 cost_of(stages, Stage::kNewtonSchulz), [&] {
                   stages.orthogonalize(resources_.newton_schulz, resources_.buffers->matrices(),
                                        resources_.buffers->scratch(), resources_.owned_matrices);
                 });
  co_await exchange(stages, where, {number, Direction::kScatter}, flags);
  if (healthy()) {
    record_.counters.newton_schulz_matrices += static_cast<int64_t>(route.owned.size());
  }
  if (resources_.backend.staged()) {
    co_await stage(Stage::kToHost, where, LaneKind::kToHost, cost_of(stages, Stage::kToHost),
                   [&] { stages.results_to_host(); });
  }
  co_await stage(Stage::kApply, where, resources_.backend.shard_lane,
                 cost_of(stages, Stage::kApply), [&] { stages.apply(); });
  if (stages.casts_through_slot()) {
    co_await stage(Stage::kWeightsToDevice, where, LaneKind::kToDevice,
                   cost_of(stages, Stage::kWeightsToDevice), [&] { stages.weights_to_device(); });
  }
}

// Advances the momentum and brings what is to be orthogonalised to where collectives find it.
// Copies to the device are filler: what ends a life goes before what begins one, and frees buffers.
asio::awaitable<void> StepPipeline::gather_momentum(const BucketStages& stages, Where where) {
  if (stages.momentum_on_shard()) {
    co_await stage(Stage::kMomentum, where, resources_.backend.shard_lane,
                   cost_of(stages, Stage::kMomentum), [&] { stages.update_momentum_on_shard(); });
    if (!resources_.backend.staged()) co_return;
    co_await stage(
        Stage::kToDevice, where, LaneKind::kToDevice, cost_of(stages, Stage::kToDevice),
        [&] { stages.wire_to_device(); }, Urgency::kFiller);
    co_return;
  }
  co_await stage(
      Stage::kToDevice, where, LaneKind::kToDevice, cost_of(stages, Stage::kToDevice),
      [&] { stages.inputs_to_device(); }, Urgency::kFiller);
  // In the stream of the copies: behind an earlier Newton-Schulz it would hold up the gather of
  // all.
  co_await stage(Stage::kMomentum, where, LaneKind::kToDevice, cost_of(stages, Stage::kMomentum),
                 [&] { stages.update_momentum_on_device(); });
}

offload::Cost StepPipeline::cost_of(const BucketStages& stages, Stage stage) const {
  return bucket_cost(stages.plan, stages.group, stages.route, resources_.collectives->rank(),
                     stage);
}

asio::awaitable<StepPipeline::Lease> StepPipeline::acquire_slot(int number) {
  while (next_for_slot_ != number || free_slots_.empty()) co_await slot_freed_.wait();
  ++next_for_slot_;
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  slot_freed_.notify();
  co_return Lease(self_, slot);
}

// Issues the bucket's collective when its turn comes, also of a rank that cannot go on.
asio::awaitable<void> StepPipeline::exchange(const BucketStages& stages, Where where, Ticket ticket,
                                             std::span<FlagWord> words) {
  while (!over_ && !(schedule_[next_ticket_] == ticket)) co_await ticket_passed_.wait();
  if (over_) co_return;
  const bool gathers = ticket.direction == Direction::kGather;
  const Stage name = gathers ? Stage::kGather : Stage::kScatter;
  const bool failed = fault_.has_value();
  const offload::Outcome outcome = co_await on_lane(
      name, where, LaneKind::kCollective, cost_of(stages, name),
      [&] { stages.exchange(*resources_.collectives, ticket.direction, failed, words); },
      Urgency::kUrgent);
  if (outcome.error) {
    lose(name, where, outcome.error);
  } else {
    ++position_;
    ++next_ticket_;
    check_flags(name, where, words);
  }
  ticket_passed_.notify();
}

// Takes chunk after chunk while there are any; AdamW fills what Muon leaves of its lane.
asio::awaitable<void> StepPipeline::adamw_worker(int worker) {
  while (healthy() && chunk_call_ < call_.adamw.size()) {
    const AdamWCall& call = call_.adamw[chunk_call_];
    const auto& chunks = resources_.adamw_chunks[call.sub_group];
    if (next_chunk_ == chunks.size()) {
      ++chunk_call_;
      next_chunk_ = 0;
      continue;
    }
    co_await run_chunk(call, chunks[next_chunk_++], worker);
  }
}

asio::awaitable<void> StepPipeline::run_chunk(const AdamWCall& call, const AdamWChunk& chunk,
                                              int worker) {
  const int64_t at = chunk.range.offset, numel = chunk.range.numel;
  const ops::AdamWElement element(call.hyper, chunk.decay);
  offload::Backend& backend = resources_.backend;
  const bool copied = call.low_precision != nullptr && backend.staged() && !call.low_with_shard;
  std::byte* const target = call.low_precision == nullptr ? nullptr : call.low_precision + 2 * at;
  std::byte* const cast =
      copied ? resources_.buffers->adamw_low_precision(worker, 2 * kAdamWChunkNumel) : target;
  const Where where{call.sub_group, -1};
  co_await stage(
      Stage::kAdamW, where, backend.shard_lane, adamw_cost(resources_.plan, numel),
      [&] {
        backend.shard().adamw(element,
                              {call.weight + at, call.gradient + at, call.exp_avg + at,
                               call.exp_avg_sq + at, ops::Typed(cast, call.low_dtype)},
                              numel);
      },
      Urgency::kFiller);
  if (!copied) co_return;
  co_await stage(Stage::kWeightsToDevice, where, LaneKind::kToDevice, cast_weights_cost(numel),
                 [&] { backend.compute->copy_to_device(target, cast, 2 * numel); });
}

// Every rank learns what went wrong on any, in every call.
asio::awaitable<void> StepPipeline::close() {
  if (broken_) co_return;
  std::vector<std::byte>& records = resources_.records;
  comm::Collectives& collectives = *resources_.collectives;
  const int world = collectives.world_size();
  const int64_t bytes = world * kRecordBytes;
  write_record(fault_, records.data());
  for (int peer = 1; peer < world; ++peer) {
    std::memcpy(records.data() + peer * kRecordBytes, records.data(), kRecordBytes);
  }
  const std::vector<int64_t> sizes(world, kRecordBytes);
  offload::Device& device = *resources_.backend.compute;
  const offload::Outcome outcome = co_await on_lane(
      Stage::kClosing, {-1, -1}, LaneKind::kCollective, {.wire_bytes = bytes - kRecordBytes},
      [&] {
        std::byte* const out = resources_.buffers->records();
        device.copy_to_device(out, records.data(), bytes);
        collectives.all_to_all_v(
            {device.for_collectives(out), sizes, device.for_collectives(out + bytes), sizes});
        device.copy_to_host(records.data() + bytes, out + bytes, bytes);
      },
      Urgency::kUrgent);
  if (outcome.error) {
    lose(Stage::kClosing, {-1, -1}, outcome.error);
  } else {
    fault_ = first_fault(std::span(records).subspan(bytes));
    leave_with_others();
  }
}

}  // namespace zeromuon::zero3
