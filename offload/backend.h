// The devices and lanes that serve a placement.
#pragma once

#include <memory>

#include "offload/device.h"
#include "offload/lane.h"
#include "offload/pinned_arena.h"
#include "offload/placement.h"

namespace zeromuon::offload {

// Destroyed in the reverse order: lanes first.
struct Backend {
  std::unique_ptr<Device> shard_memory;  // null when the flat shard is on the compute device
  std::unique_ptr<Device> compute;
  std::shared_ptr<Registrar> registrar;  // pins host memory for copies; null where nothing does
  PinnedArena::FirstTouch first_touch;   // of pinned memory; null: by the compute team
  // Whether the lanes of a step hand work to each other by marks (Task::hands_over), without the
  // host between them.
  bool hands_over = false;
  Lanes lanes;

  bool staged() const { return shard_memory != nullptr; }
  Device& shard() { return staged() ? *shard_memory : *compute; }
};

// cpu_threads: of the OpenMP team on which the CPU works; 0: as the environment says. Raises
// ValueError when this build cannot work on such memory, or this CPU cannot run such kernels.
Backend make_backend(const Placement& placement, ops::CpuKernels kernels, int cpu_threads = 0);

// The same of a placement that computes on a GPU, in a build with CUDA, see
// Note [Streams are the lanes']. Shard on the CPU: a lane for each kind of work, so that copies
// both ways, products, collectives and the CPU go on at the same time. Shard on the GPU: a lane for
// the collectives and one for all else. Lanes hand over by marks where the environment says
// ZEROMUON_HAND_OVER=events; any other value but "host" is a ValueError.
Backend make_cuda_backend(const Placement& placement, ops::CpuKernels kernels, int cpu_threads);

}  // namespace zeromuon::offload
