#include "offload/slots.h"

#include <ATen/ops/empty.h>

namespace zeromuon::offload {
namespace {

at::Tensor allocate(int64_t numel, at::ScalarType dtype, c10::Device device, bool pinned) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype).device(device).pinned_memory(pinned));
}

}  // namespace

Slot::Slot(const SlotSizes& sizes, const Placement& placement)
    : shard_wire(allocate(sizes.shard_bytes, at::kByte, placement.shard, placement.staged())),
      exchange_wire(placement.staged()
                        ? allocate(sizes.shard_bytes, at::kByte, placement.compute, false)
                        : shard_wire),
      owner_wire(allocate(sizes.owner_bytes, at::kByte, placement.compute, false)),
      matrices(allocate(sizes.matrix_numel, at::kFloat, placement.compute, false)),
      scratch(allocate(sizes.scratch_numel, at::kFloat, placement.compute, false)) {}

}  // namespace zeromuon::offload
