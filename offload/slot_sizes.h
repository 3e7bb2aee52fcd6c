// Sizes of the buffers that a step needs on one rank: decided with the plan, allocated once.
#pragma once

#include <array>
#include <cstdint>

namespace zeromuon::offload {

// What a GPU's kernels and NCCL's packs of 16 bytes want of a buffer, and no cache line is shared.
constexpr int64_t kBlockAlignment = 128;
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

// What a bucket in flight may need: of the host (pinned) the first two, the others of the compute
// device.
enum class SlotBuffer : uint8_t {
  kShardWire,     // the shard's side of the wire, where it is staged
  kLowPrecision,  // cast weights on their way to the device
  kExchange,      // the shard's side of the wire
  kOwnerWire,     // the owner's side
  kGradient,      // gradients of a momentum computed there
  kMomentum       // a momentum that is streamed
};
constexpr int kSlotBuffers = 6;
constexpr bool on_host(SlotBuffer buffer) { return buffer <= SlotBuffer::kLowPrecision; }
constexpr const char* name_of(SlotBuffer buffer) {
  constexpr const char* kNames[kSlotBuffers] = {"shard wire", "cast weights", "exchange",
                                                "owner wire", "gradient",     "momentum"};
  return kNames[static_cast<int>(buffer)];
}

// A value for each buffer of a slot.
template <typename T>
struct PerSlotBuffer {
  std::array<T, kSlotBuffers> values{};
  T& operator[](SlotBuffer buffer) { return values[static_cast<int>(buffer)]; }
  const T& operator[](SlotBuffer buffer) const { return values[static_cast<int>(buffer)]; }
};

// Bytes of one bucket in flight; 0: not needed.
struct SlotSizes : PerSlotBuffer<int64_t> {
  int64_t host_bytes() const { return sum(true); }
  int64_t device_bytes() const { return sum(false); }

 private:
  int64_t sum(bool host) const {
    int64_t bytes = 0;
    for (int b = 0; b < kSlotBuffers; ++b) {
      if (on_host(static_cast<SlotBuffer>(b)) == host) bytes += aligned(values[b]);
    }
    return bytes;
  }
};

struct BufferSizes {
  int slots = 1;
  SlotSizes slot;
  int64_t matrix_numel = 0;   // fp32, compute device: one bucket is orthogonalised at a time
  int64_t scratch_numel = 0;  // fp32, compute device
  int64_t adamw_low_precision_bytes = 0;  // host: as in SlotSizes, one for each AdamW worker
  // A word for each AdamW worker, where the shard is: of the host (pinned), or of the compute
  // device.
  int64_t host_alarm_bytes = 0, device_alarm_bytes = 0;
  int64_t record_bytes = 0;  // compute device: what ranks tell each other at the end
  // Host: what is read of flags, alarms and records. Pinned where they lie on another device.
  int64_t word_bytes = 0;
  bool pins_words = false;

  int64_t host_bytes() const {
    return slots * slot.host_bytes() + aligned(adamw_low_precision_bytes) +
           aligned(host_alarm_bytes) + (pins_words ? aligned(word_bytes) : 0);
  }
  int64_t device_bytes() const {
    return slots * slot.device_bytes() + aligned(4 * matrix_numel) + aligned(4 * scratch_numel) +
           aligned(device_alarm_bytes) + aligned(record_bytes);
  }
  int64_t total_bytes() const { return host_bytes() + device_bytes(); }
};

}  // namespace zeromuon::offload
