// The buffers that a bucket in flight occupies.
#pragma once

#include <ATen/core/Tensor.h>

#include "offload/placement.h"
#include "offload/slot_sizes.h"

namespace zeromuon::offload {

// Allocated once, at bind; serves one bucket after the other.
// Thread: used by the thread that runs the step.
struct Slot {
  Slot(const SlotSizes& sizes, const Placement& placement);

  at::Tensor shard_wire;     // [shard_bytes] uint8, shard device; pinned when the other is a GPU
  at::Tensor exchange_wire;  // [shard_bytes] uint8, compute device; the same memory when it is one
  at::Tensor owner_wire;     // [owner_bytes] uint8, compute device
  at::Tensor matrices;       // [matrix_numel] fp32, compute device
  at::Tensor scratch;        // [scratch_numel] fp32, compute device
};

}  // namespace zeromuon::offload
