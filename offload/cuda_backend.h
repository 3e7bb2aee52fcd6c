// The devices and lanes of a placement that computes on a GPU.
#pragma once

#include "offload/backend.h"

namespace zeromuon::offload {

// Shard on the CPU: a lane for each kind of work, so that copies both ways, products, collectives
// and the CPU go on at the same time. Shard on the GPU: a lane for the collectives and one for all
// else. See Note [Streams are the lanes'].
// Raises ValueError when this CPU cannot run such kernels.
Backend make_cuda_backend(const Placement& placement, ops::CpuKernels kernels);

}  // namespace zeromuon::offload
