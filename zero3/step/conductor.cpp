#include "zero3/step/conductor.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/plan/step_costs.h"

namespace zeromuon::zero3 {

namespace asio = boost::asio;

Conductor::Conductor(asio::io_context& io, StepResources& resources, const StepCall& call,
                     const StepLimits& limits, StepRecord& record)
    : io_(io),
      resources_(resources),
      call_(call),
      limits_(limits),
      record_(record),
      bench_{resources.newton_schulz, resources.buffers->matrices(), resources.buffers->scratch(),
             resources.owned_matrices},
      ticket_passed_(io),
      task_ended_(io),
      watch_timer_(io),
      lanes_(io, resources.backend.lanes, record),
      agreement_(resources, ticket_passed_, digest_of_values(call)),
      slots_(io, static_cast<int>(resources.buffers->slots().size())) {
  for (const MuonCall& muon : call.muon) {
    const int count = static_cast<int>(resources.routes[muon.sub_group].size());
    for (int k = 0; k < count; ++k) buckets_.push_back({&muon, k});
  }
  const int buckets = static_cast<int>(buckets_.size());
  schedule_ = collective_schedule(buckets, slots_.free());
  check_schedule(schedule_, buckets, slots_.free());
}

asio::awaitable<void> Conductor::run() {
  const int slots = slots_.free();
  for (int k = 0; k < static_cast<int>(buckets_.size()); ++k) spawn(run_bucket(k));
  for (int w = 0; w < kAdamWWorkers; ++w) spawn(adamw_worker(w));
  if (limits_.stage_timeout.count() > 0) asio::co_spawn(io_, watch(), asio::detached);
  while (running_ > 0) co_await task_ended_.wait();
  co_await agreement_.close(lanes_);
  done_ = true;
  watch_timer_.cancel();
  invariant(slots_.free() == slots, "a call ends with ", slots_.free(), " of ", slots,
            " slots back");
  lanes_.check_idle();
}

// The life of one bucket.
asio::awaitable<void> Conductor::run_bucket(int number) {
  const auto [call, index] = buckets_[number];
  const Where where{call->sub_group, index};
  const StageTable& table = resources_.plan.stages;
  const BucketRoute& route = resources_.routes[call->sub_group][index];

  const SlotQueue::Lease slot = co_await slots_.acquire(number);
  const BucketStages stages{resources_.plan,
                            resources_.plan.sub_groups[call->sub_group],
                            route,
                            resources_.backend,
                            *call,
                            resources_.buffers->slots()[slot.index],
                            bench_,
                            resources_.runs[call->sub_group][index],
                            resources_.alarm(slot.index)};
  *stages.alarm = 0;  // a step that broke may have left one
  const std::span<FlagWord> flags = resources_.flags(slot.index);

  Handed handed;
  co_await run_rows(table.to_owner, stages, where, handed);
  co_await exchange(table.gather, stages, where, {number, Direction::kGather}, flags, handed);
  co_await run_rows(table.on_owner, stages, where, handed);
  co_await exchange(table.scatter, stages, where, {number, Direction::kScatter}, flags, handed);
  if (agreement_.healthy()) {
    record_.counters.newton_schulz_matrices += static_cast<int64_t>(route.owned.size());
  }
  co_await run_rows(table.to_shard, stages, where, handed);
  // A call that broke off before an exchange leaves the slot at work.
  if (handed.mark) {
    const StageRow& row = *handed.row;
    const offload::Outcome outcome = co_await run_behind(row, where, {}, nullptr, false, handed);
    if (outcome.error) agreement_.fail(row.stage, where, text_of(outcome.error));
  }
}

asio::awaitable<void> Conductor::run_rows(const std::vector<StageRow>& rows,
                                          const BucketStages& stages, Where where, Handed& handed) {
  for (const StageRow& row : rows) {
    const auto& body = resources_.bodies.bucket.at(row.body);
    co_await run_stage(
        row, where, cost_of(row, stages), [&] { body(stages); }, handed);
    if (const FlagWord code = std::exchange(*stages.alarm, 0); code != 0) {
      agreement_.fail(row.stage, where, non_finite_weight(stages.group, code));
    }
  }
}

// Issues the bucket's collective when its turn comes, also of a rank that cannot go on.
asio::awaitable<void> Conductor::exchange(const StageRow& row, const BucketStages& stages,
                                          Where where, Ticket ticket, std::span<FlagWord> words,
                                          Handed& handed) {
  while (!agreement_.over() && !(schedule_[next_ticket_] == ticket)) {
    co_await ticket_passed_.wait();
  }
  if (agreement_.over()) co_return;
  const bool failed = agreement_.failed();
  const offload::Outcome outcome = co_await run_behind(
      row, where, cost_of(row, stages),
      [&] { stages.exchange(*resources_.collectives, ticket.direction, failed, words); }, false,
      handed);
  if (outcome.error) {
    agreement_.lose(row.stage, where, outcome.error);
  } else {
    ++next_ticket_;
    agreement_.exchanged(row, where, ticket.direction, words);
  }
  ticket_passed_.notify();
}

// Takes chunk after chunk while there are any.
asio::awaitable<void> Conductor::adamw_worker(int worker) {
  while (agreement_.healthy() && chunk_call_ < call_.adamw.size()) {
    const AdamWCall& call = call_.adamw[chunk_call_];
    const auto& chunks = resources_.adamw_chunks[call.sub_group];
    if (next_chunk_ == chunks.size()) {
      ++chunk_call_;
      next_chunk_ = 0;
      continue;
    }
    const SubGroupPlan& group = resources_.plan.sub_groups[call.sub_group];
    FlagWord& alarm = resources_.adamw_alarms[worker];
    alarm = 0;
    const ChunkStages stages{resources_.backend,
                             call,
                             chunks[next_chunk_++],
                             resources_.buffers->alarm(worker),
                             &alarm,
                             resources_.buffers->adamw_low_precision(
                                 worker, kCastBytes * adamw_chunk_numel(resources_.plan.options))};
    Handed handed;
    for (const StageRow& row : resources_.plan.stages.adamw) {
      const auto& body = resources_.bodies.chunk.at(row.body);
      co_await run_stage(
          row, {call.sub_group}, chunk_cost(row, stages.chunk.range.numel), [&] { body(stages); },
          handed);
      if (std::exchange(alarm, 0) != 0) {
        agreement_.fail(row.stage, {call.sub_group},
                        non_finite_chunk(group, stages.chunk.range, rank()));
      }
    }
  }
}

asio::awaitable<void> Conductor::run_stage(const StageRow& row, Where where, offload::Cost cost,
                                           std::function<void()> body, Handed& handed) {
  // A cast weight that is not copied is news; other work that is not begun changes nothing.
  if (!agreement_.healthy() && row.changes != Changes::kCasts) co_return;
  const size_t change = record_.changes.size();
  const bool changes = row.changes != Changes::kNothing;
  if (changes) record_.changes.push_back({row.changes, where.sub_group, where.bucket, false});
  if (!agreement_.healthy()) co_return;
  // A trace shows when each task was at work.
  const bool hands_over = row.hands_over && resources_.backend.hands_over && !record_.traces;
  const offload::Outcome outcome =
      co_await run_behind(row, where, cost, std::move(body), hands_over, handed);
  if (outcome.error) {
    agreement_.fail(row.stage, where, text_of(outcome.error));
  } else if (changes && handed.mark) {
    handed.changes.push_back(change);
  } else if (changes) {
    record_.changes[change].finished = true;
  }
}

// Runs a task behind what was handed over, and hands it over in its turn or sees the end of all.
// Where it fails, what was handed over stays so: it may be at work.
asio::awaitable<offload::Outcome> Conductor::run_behind(const StageRow& row, Where where,
                                                        offload::Cost cost,
                                                        std::function<void()> body, bool hands_over,
                                                        Handed& handed) {
  offload::Outcome outcome =
      co_await lanes_.run(row, where, cost, std::move(body), handed.mark, hands_over);
  if (outcome.mark) {
    handed.mark = outcome.mark;
    handed.row = &row;
  } else if (!outcome.error) {
    for (const size_t change : handed.changes) record_.changes[change].finished = true;
    handed = {};
  }
  co_return outcome;
}

offload::Cost Conductor::cost_of(const StageRow& row, const BucketStages& stages) const {
  return bucket_cost(row, stages.route, rank());
}

void Conductor::spawn(awaitable<void> task) {
  ++running_;
  asio::co_spawn(io_, std::move(task), [this](const std::exception_ptr& error) {
    if (error) {
      agreement_.break_off(concat("rank ", rank(), ": ", text_of(error)));
    }
    --running_;
    task_ended_.notify();
  });
}

asio::awaitable<void> Conductor::watch() {
  const auto period = std::max<std::chrono::steady_clock::duration>(limits_.stage_timeout / 16,
                                                                    std::chrono::milliseconds(1));
  while (!done_) {
    watch_timer_.expires_after(period);
    co_await watch_timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    if (done_ || agreement_.broken()) co_return;
    if (!agreement_.leave_with_others()) fail_stuck_lanes();
  }
}

void Conductor::fail_stuck_lanes() {
  const std::optional<LanesInUse::Stuck> stuck = lanes_.stuck(limits_.stage_timeout);
  if (!stuck) return;
  const std::string what =
      concat(place(stuck->stage, stuck->where, rank()), ": no progress for ", stuck->seconds,
             " s (stage_timeout_s)",
             stuck->waits ? ", waiting for the other ranks: look at what they say" : "");
  limits_.diagnose(concat(what, "\n", resources_.backend.lanes.states()));
  agreement_.break_off(what);
}

}  // namespace zeromuon::zero3
