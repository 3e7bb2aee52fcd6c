// The OpenMP team of a lane where the CPU works.
#pragma once

#include <omp.h>

#include "offload/thread_lane.h"

namespace zeromuon::offload {

// A thread's team has as many threads as the environment says, which torchrun sets to 1, and what
// torch.set_num_threads says is for the thread that calls it.
class TeamContext : public LaneContext {
 public:
  // threads: 0: as the environment says.
  explicit TeamContext(int threads) : threads_(threads) {}
  void enter() override {
    if (threads_ > 0) omp_set_num_threads(threads_);
  }

 private:
  const int threads_;
};

}  // namespace zeromuon::offload
