// How a StepPipeline uses its lanes, and what it does when they fail.
#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/step/step_pipeline.h"

namespace zeromuon::zero3 {

namespace asio = boost::asio;
using offload::LaneKind;
using offload::Urgency;

namespace {

bool is_aborted(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const comm::Aborted&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

asio::awaitable<void> StepPipeline::stage(Stage stage, Where where, LaneKind kind,
                                          offload::Cost cost, std::function<void()> body,
                                          Urgency urgency) {
  // A cast weight that is not copied is news; other work that is not begun changes nothing.
  if (!healthy() && stage != Stage::kWeightsToDevice) co_return;
  const size_t change = record_.changes.size();
  const bool changes = changes_tensors(stage);
  if (changes) record_.changes.push_back({stage, where.sub_group, where.bucket, false});
  if (!healthy()) co_return;
  const offload::Outcome outcome =
      co_await on_lane(stage, where, kind, cost, std::move(body), urgency);
  if (outcome.error) {
    fail(stage, where, text_of(outcome.error));
  } else if (changes) {
    record_.changes[change].finished = true;
  }
}

asio::awaitable<offload::Outcome> StepPipeline::on_lane(Stage stage, Where where, LaneKind kind,
                                                        offload::Cost cost,
                                                        std::function<void()> body,
                                                        Urgency urgency) {
  offload::Lane& lane = resources_.backend.lanes[kind];
  LaneProgress& progress = progress_[&lane];
  const int64_t number = tasks_++;
  progress.add({number, stage, where, urgency});
  if (kind == LaneKind::kCollective) {
    in_collective_ = false;
    body = [this, body = std::move(body)] {
      in_collective_ = true;
      body();
    };
  }
  offload::Task task{name_of(stage), where.bucket, urgency, cost, std::move(body)};
  const auto submit = [&lane, &io = io_](auto handler, offload::Task task) {
    const auto held = std::make_shared<decltype(handler)>(std::move(handler));
    lane.submit(std::move(task), [held, &io](offload::Outcome outcome) {
      asio::post(io, [held, outcome = std::move(outcome)]() mutable {
        std::move (*held)(std::move(outcome));
      });
    });
  };
  offload::Outcome outcome =
      co_await asio::async_initiate<const asio::use_awaitable_t<>, void(offload::Outcome)>(
          submit, asio::use_awaitable, std::move(task));
  progress.remove(number);
  note(stage, where, kind, outcome);
  co_return outcome;
}

void StepPipeline::LaneProgress::add(const Entry& entry) {
  if (entries.empty()) last = Clock::now();
  entries.push_back(entry);
}

// What runs next is the first that is urgent, else the first.
void StepPipeline::LaneProgress::remove(int64_t number) {
  std::erase_if(entries, [&](const Entry& e) { return e.number == number; });
  const auto next = std::find_if(entries.begin(), entries.end(),
                                 [](const Entry& e) { return e.urgency == Urgency::kUrgent; });
  if (next != entries.end()) std::rotate(entries.begin(), next, next + 1);
  last = Clock::now();
}

bool StepPipeline::changes_tensors(Stage stage) const {
  const bool streamed = resources_.backend.staged() &&
                        resources_.plan.options.flow.momentum == offload::MomentumHome::kStreamed;
  if (stage == Stage::kMomentum) return !streamed;
  if (stage == Stage::kToHost) return streamed;
  return stage == Stage::kApply || stage == Stage::kAdamW || stage == Stage::kWeightsToDevice;
}

void StepPipeline::note(Stage stage, Where where, LaneKind kind, const offload::Outcome& outcome) {
  record_.counters.seconds[static_cast<int>(stage)] +=
      1e-9 * static_cast<double>(outcome.end_ns - outcome.begin_ns);
  if (!record_.traces) return;
  record_.trace.push_back({stage, static_cast<uint8_t>(kind), where.sub_group, where.bucket,
                           outcome.begin_ns, outcome.end_ns});
}

void StepPipeline::spawn(awaitable<void> task) {
  ++running_;
  asio::co_spawn(io_, std::move(task), [this](const std::exception_ptr& error) {
    if (error) break_off(concat("rank ", resources_.collectives->rank(), ": ", text_of(error)));
    --running_;
    task_ended_.notify();
  });
}

std::string StepPipeline::place(Stage stage, Where where) const {
  const std::string bucket = where.bucket < 0 ? "" : concat(", bucket ", where.bucket);
  const std::string group =
      where.sub_group < 0 ? "" : concat("sub-group ", where.sub_group, bucket, ", ");
  return concat(group, "stage ", name_of(stage), ", rank ", resources_.collectives->rank());
}

void StepPipeline::fail(Stage stage, Where where, const std::string& what) {
  if (!fault_) fault_ = Fault{position_, concat(place(stage, where), ": ", what)};
}

// A collective that fails itself, here or because another rank ended it.
void StepPipeline::lose(Stage stage, Where where, const std::exception_ptr& error) {
  const std::string what = text_of(error);
  break_off(is_aborted(error) ? what : concat(place(stage, where), ": ", what));
}

// No collective can follow: the others are told by ending those that they wait for.
void StepPipeline::break_off(const std::string& cause) {
  if (!broken_) {
    const std::string own = fault_ ? fault_->what : cause;
    fault_ = Fault{position_, resources_.collectives->abort(own)};
  }
  over_ = broken_ = true;
  ticket_passed_.notify();
}

void StepPipeline::check_flags(Stage stage, Where where, std::span<const FlagWord> words) {
  for (size_t peer = 0; peer < words.size(); ++peer) {
    if (words[peer] == 0) continue;
    over_ = true;
    if (words[peer] == kFailedFlag || fault_) continue;
    const int block = static_cast<int>(words[peer] - 1);
    const char* what = stage == Stage::kGather ? "momentum" : "Newton-Schulz result";
    const auto& group = resources_.plan.sub_groups[where.sub_group];
    fault_ = Fault{position_,
                   concat("sub-group ", where.sub_group, ", bucket ", where.bucket, ", stage ",
                          name_of(stage), ": the ", what, " of \"", group.name_of_block(block),
                          "\" has a NaN or infinite value on rank ", peer)};
  }
}

asio::awaitable<void> StepPipeline::watch() {
  const auto period =
      std::max<Clock::duration>(limits_.stage_timeout / 16, std::chrono::milliseconds(1));
  while (!done_) {
    watch_timer_.expires_after(period);
    co_await watch_timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    if (done_ || broken_) co_return;
    if (!leave_with_others()) fail_stuck_lanes();
  }
}

// Another rank may have given up while this one's exchanges still succeed.
bool StepPipeline::leave_with_others() {
  const std::string cause = resources_.collectives->cause();
  if (cause.empty()) return false;
  break_off(cause);
  return true;
}

// A rank that waits in a collective is more patient: what it waits for reports itself first.
void StepPipeline::fail_stuck_lanes() {
  const offload::Lane* collective = &resources_.backend.lanes[LaneKind::kCollective];
  for (const auto& [lane, progress] : progress_) {
    const bool waits = lane == collective && in_collective_;
    const auto limit = waits ? limits_.stage_timeout * 3 / 2 : limits_.stage_timeout;
    const auto waited = Clock::now() - progress.last;
    if (progress.entries.empty() || waited < limit) continue;
    const LaneProgress::Entry& stuck = progress.entries.front();
    const double seconds = std::chrono::duration<double>(waited).count();
    const std::string states = resources_.backend.lanes.states();
    const std::string what = concat(
        place(stuck.stage, stuck.where), ": no progress for ", seconds, " s (stage_timeout_s)",
        waits ? ", waiting for the other ranks: look at what they say" : "");
    limits_.diagnose(concat(what, "\n", states));
    break_off(what);
    return;
  }
}

void StepPipeline::check_all_is_back() const {
  invariant(free_slots_.size() == resources_.buffers->slots().size(), "a call ends with ",
            free_slots_.size(), " of ", resources_.buffers->slots().size(), " slots back");
  for (const auto& [lane, progress] : progress_) {
    invariant(progress.entries.empty(), "a call ends with ", progress.entries.size(),
              " tasks under way: ", lane->state());
  }
}

}  // namespace zeromuon::zero3
