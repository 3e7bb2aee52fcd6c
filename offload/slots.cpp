#include "offload/slots.h"

namespace zeromuon::offload {

StepBuffers::StepBuffers(const BufferSizes& sizes, Backend& backend) {
  if (sizes.host_bytes() > 0) {
    arena_ =
        std::make_unique<PinnedArena>(sizes.host_bytes(), backend.registrar, backend.first_touch);
  }
  const auto on_host_memory = [&](int64_t bytes) -> std::byte* {
    return bytes == 0 ? nullptr : arena_->take(bytes).data;
  };
  const auto on_device = [&](int64_t bytes) -> std::byte* {
    if (bytes == 0) return nullptr;
    return device_.emplace_back(backend.compute->allocate(bytes)).get();
  };
  for (int i = 0; i < sizes.slots; ++i) {
    Slot slot;
    for (int b = 0; b < kSlotBuffers; ++b) {
      const auto buffer = static_cast<SlotBuffer>(b);
      slot[buffer] =
          on_host(buffer) ? on_host_memory(sizes.slot[buffer]) : on_device(sizes.slot[buffer]);
    }
    std::byte*& shard_wire = slot[SlotBuffer::kShardWire];
    if (shard_wire == nullptr) shard_wire = slot[SlotBuffer::kExchange];
    slots_.push_back(slot);
  }
  adamw_low_precision_ = on_host_memory(sizes.adamw_low_precision_bytes);
  std::byte* const host_alarms = on_host_memory(sizes.host_alarm_bytes);
  std::byte* const device_alarms = on_device(sizes.device_alarm_bytes);
  alarms_ = reinterpret_cast<uint64_t*>(host_alarms == nullptr ? device_alarms : host_alarms);
  matrices_ = reinterpret_cast<float*>(on_device(4 * sizes.matrix_numel));
  scratch_ = reinterpret_cast<float*>(on_device(4 * sizes.scratch_numel));
  records_ = on_device(sizes.record_bytes);
  if (sizes.pins_words) {
    words_ = on_host_memory(sizes.word_bytes);
  } else {
    own_words_.resize(static_cast<size_t>(sizes.word_bytes) / sizeof(uint64_t));
    words_ = reinterpret_cast<std::byte*>(own_words_.data());
  }
}

}  // namespace zeromuon::offload
