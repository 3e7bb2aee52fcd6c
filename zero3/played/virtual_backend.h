// Lanes without work: tasks take the time that given rates make of their cost, on a virtual clock.
// Bodies are not run and no memory is touched, so a schedule of any size can be played in one
// thread.
#pragma once

#include <functional>
#include <queue>
#include <vector>

#include "offload/backend.h"
#include "offload/rates.h"

namespace zeromuon::offload {

// A clock that jumps from event to event.
// Thread: one.
class VirtualClock {
 public:
  int64_t now_ns() const { return now_ns_; }
  void at(int64_t time_ns, std::function<void()> event);
  // Jumps to the next event and runs it; false when there is none.
  bool advance();

 private:
  struct Event {
    int64_t time_ns, number;
    std::function<void()> run;
    bool operator>(const Event& other) const {
      return time_ns != other.time_ns ? time_ns > other.time_ns : number > other.number;
    }
  };

  int64_t now_ns_ = 0, events_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> queue_;
};

// The collectives of some processes: the n-th of each begins when all have come to it, and ends
// after the latency and the time of the one that sends or gets most.
// Thread: one.
class VirtualFabric {
 public:
  VirtualFabric(VirtualClock& clock, int processes) : clock_(clock), waiting_(processes) {}

  // started: told when it begins; ended: when it ends.
  void join(int process, int64_t duration_ns,
            std::function<void(int64_t begin, int64_t end)> ended);

 private:
  struct Waiting {
    bool here = false;
    int64_t duration_ns = 0;
    std::function<void(int64_t, int64_t)> ended;
  };

  VirtualClock& clock_;
  std::vector<Waiting> waiting_;
};

// Staged: a flat shard on the CPU of the process, compute on its device. Clock and fabric must live
// longer.
Backend make_virtual_backend(VirtualClock& clock, VirtualFabric& fabric, int process,
                             const Rates& rates);

}  // namespace zeromuon::offload
