#include "csrc/comm/in_process_collectives.h"

#include <cstring>
#include <numeric>

#include "csrc/base/check.h"

namespace zeromuon::comm {
namespace {

int64_t offset_of(std::span<const int64_t> bytes, int peer) {
  return std::reduce(bytes.begin(), bytes.begin() + peer);
}

}  // namespace

void InProcessBoard::arrive_and_wait() {
  std::unique_lock lock(mutex_);
  const int64_t round = round_;
  if (!aborted_ && ++arrived_ == world_size()) {
    arrived_ = 0;
    ++round_;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return round_ != round || aborted_.has_value(); });
  // A round that all have reached is done, whatever happened since: buffers are read until then.
  if (round_ == round) throw Aborted(*aborted_);
}

std::string InProcessBoard::abort(const std::string& cause) {
  const std::lock_guard lock(mutex_);
  if (!aborted_) aborted_ = cause;
  changed_.notify_all();
  return *aborted_;
}

std::string InProcessBoard::cause() {
  const std::lock_guard lock(mutex_);
  return aborted_.value_or("");
}

void InProcessCollectives::do_all_to_all_v(const Exchange& exchange) {
  board_->posted_[rank_] = &exchange;
  board_->arrive_and_wait();
  for (int peer = 0; peer < world_size(); ++peer) {
    const Exchange& theirs = *board_->posted_[peer];
    const int64_t bytes = exchange.receive_bytes[peer];
    invariant(theirs.send_bytes[rank_] == bytes, "all_to_all_v: rank ", rank_, " expects ", bytes,
              " bytes from rank ", peer, ", which sends ", theirs.send_bytes[rank_]);
    std::byte* const to = exchange.receive + offset_of(exchange.receive_bytes, peer);
    const std::byte* const from = theirs.send + offset_of(theirs.send_bytes, rank_);
    copy_ ? copy_(to, from, bytes) : static_cast<void>(std::memcpy(to, from, bytes));
  }
  board_->arrive_and_wait();
}

}  // namespace zeromuon::comm
