#include "zero3/played/virtual_clock.h"

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::offload {

void VirtualClock::at(int64_t time_ns, std::function<void()> event) {
  queue_.push({time_ns, events_++, std::move(event)});
}

bool VirtualClock::advance() {
  if (queue_.empty()) return false;
  const Event next = queue_.top();
  queue_.pop();
  now_ns_ = next.time_ns;
  next.run();
  return true;
}

void VirtualFabric::join(int process, int64_t duration_ns,
                         std::function<void(int64_t, int64_t)> ended) {
  invariant(!waiting_[process].here, "process ", process, " joins a collective twice");
  waiting_[process] = {true, duration_ns, std::move(ended)};
  int64_t longest = 0;
  for (const Waiting& w : waiting_) {
    if (!w.here) return;
    longest = std::max(longest, w.duration_ns);
  }
  const int64_t begin = clock_.now_ns(), end = begin + longest;
  for (Waiting& w : waiting_) {
    clock_.at(end, [ended = std::move(w.ended), begin, end] { ended(begin, end); });
    w = {};
  }
}

}  // namespace zeromuon::offload
