#include "offload/slots.h"

namespace zeromuon::offload {
StepBuffers::StepBuffers(const BufferSizes& sizes, Backend& backend) {
  if (sizes.host_bytes() > 0) {
    arena_ = std::make_unique<PinnedArena>(sizes.host_bytes(), backend.registrar.get(),
                                           backend.first_touch);
  }
  const auto on_host = [&](int64_t bytes) -> std::byte* {
    return bytes == 0 ? nullptr : arena_->take(bytes).data;
  };
  const auto on_device = [&](int64_t bytes) -> std::byte* {
    if (bytes == 0) return nullptr;
    return device_.emplace_back(backend.compute->allocate(bytes)).get();
  };
  for (int i = 0; i < sizes.slots; ++i) {
    Slot slot;
    slot.shard_wire = on_host(sizes.slot.shard_wire_bytes);
    slot.low_precision = on_host(sizes.slot.low_precision_bytes);
    slot.exchange = on_device(sizes.slot.exchange_bytes);
    slot.owner_wire = on_device(sizes.slot.owner_bytes);
    slot.gradient = on_device(sizes.slot.gradient_bytes);
    slot.momentum = on_device(sizes.slot.momentum_bytes);
    if (slot.shard_wire == nullptr) slot.shard_wire = slot.exchange;
    slots_.push_back(slot);
  }
  adamw_low_precision_ = on_host(sizes.adamw_low_precision_bytes);
  matrices_ = reinterpret_cast<float*>(on_device(4 * sizes.matrix_numel));
  scratch_ = reinterpret_cast<float*>(on_device(4 * sizes.scratch_numel));
  records_ = on_device(sizes.record_bytes);
}

}  // namespace zeromuon::offload
