#include "zero3/step/lanes_in_use.h"

#include <algorithm>
#include <boost/asio/async_result.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {

namespace asio = boost::asio;
using offload::LaneKind;
using offload::Outcome;

LanesInUse::LanesInUse(asio::io_context& io, const offload::Lanes& lanes, StepRecord& record)
    : io_(io), lanes_(lanes), record_(record) {}

asio::awaitable<Outcome> LanesInUse::run(const StageRow& row, Where where, offload::Cost cost,
                                         std::function<void()> body,
                                         std::shared_ptr<offload::Mark> after, bool hands_over) {
  offload::Lane& lane = lanes_[row.lane];
  Progress& progress = progress_[&lane];
  progress.remove_reached();
  const int64_t number = tasks_++;
  progress.add({number, &row, where});
  if (row.lane == LaneKind::kCollective) {
    in_collective_ = false;
    body = [this, body = std::move(body)] {
      in_collective_ = true;
      body();
    };
  }
  // Named: GCC 12 destroys a braced temporary of a co_await twice.
  offload::Task task{row.stage,       where.bucket, row.urgency,      cost,
                     std::move(body), number,       std::move(after), hands_over};
  Outcome outcome = co_await submit(lane, std::move(task));
  outcome.mark ? progress.hand_over(number, outcome.mark) : progress.remove(number);
  note(row, where, outcome);
  co_return outcome;
}

asio::awaitable<Outcome> LanesInUse::submit(offload::Lane& lane, offload::Task task) {
  const auto begin = [&lane, &io = io_](auto handler, offload::Task given) {
    const auto held = std::make_shared<decltype(handler)>(std::move(handler));
    lane.submit(std::move(given), [held, &io](Outcome outcome) {
      asio::post(io, [held, outcome = std::move(outcome)]() mutable {
        std::move (*held)(std::move(outcome));
      });
    });
  };
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>, void(Outcome)>(
      begin, asio::use_awaitable, std::move(task));
}

void LanesInUse::note(const StageRow& row, Where where, const Outcome& outcome) {
  record_.counters.seconds[row.stage] +=
      1e-9 * static_cast<double>(outcome.end_ns - outcome.begin_ns);
  if (!record_.traces) return;
  record_.trace.push_back(
      {row.stage, row.lane, where.sub_group, where.bucket, outcome.begin_ns, outcome.end_ns});
}

std::optional<LanesInUse::Stuck> LanesInUse::stuck(std::chrono::milliseconds limit) {
  const offload::Lane* collective = &lanes_[LaneKind::kCollective];
  for (auto& [lane, progress] : progress_) {
    progress.remove_reached();
    const bool waits = lane == collective && in_collective_;
    const auto waited = Clock::now() - progress.last;
    if (progress.entries.empty() || waited < (waits ? limit * 3 / 2 : limit)) continue;
    const Progress::Entry& late = progress.runs(lane->running());
    return Stuck{late.row->stage, late.where, std::chrono::duration<double>(waited).count(), waits};
  }
  return std::nullopt;
}

void LanesInUse::check_idle() {
  for (auto& [lane, progress] : progress_) {
    progress.remove_reached();
    invariant(progress.entries.empty(), "a call ends with ", progress.entries.size(),
              " tasks under way: ", lane->state());
  }
}

void LanesInUse::Progress::add(const Entry& entry) {
  if (entries.empty()) last = Clock::now();
  entries.push_back(entry);
}

void LanesInUse::Progress::remove(int64_t number) {
  std::erase_if(entries, [&](const Entry& e) { return e.number == number; });
  last = Clock::now();
}

void LanesInUse::Progress::hand_over(int64_t number, const std::shared_ptr<offload::Mark>& mark) {
  const auto handed = std::ranges::find_if(entries, [](const Entry& e) { return !e.mark; });
  const auto it = std::ranges::find(entries, number, &Entry::number);
  it->mark = mark;
  std::rotate(handed, it, it + 1);
}

void LanesInUse::Progress::remove_reached() {
  const auto is_reached = [](const Entry& e) {
    try {
      return e.mark && e.mark->reached();
    } catch (const std::exception&) {
      return true;  // who waits for it says what went wrong
    }
  };
  if (std::erase_if(entries, is_reached) > 0) last = Clock::now();
}

const LanesInUse::Progress::Entry& LanesInUse::Progress::runs(std::optional<int64_t> number) const {
  if (entries.front().mark) return entries.front();  // all else is behind it
  const auto found = std::ranges::find(entries, number, &Entry::number);
  return found == entries.end() ? entries.front() : *found;
}

}  // namespace zeromuon::zero3
