// Sizes of the buffers that a step needs on one rank: decided with the plan, allocated once.
#pragma once

#include <cstdint>

namespace zeromuon::offload {

constexpr int64_t kBlockAlignment = 64;
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

// Of one bucket in flight; 0: not needed.
struct SlotSizes {
  int64_t shard_wire_bytes = 0;     // host: the shard's side of the wire, where it is staged
  int64_t low_precision_bytes = 0;  // host: cast weights on their way to the device
  int64_t exchange_bytes = 0;       // compute device: the shard's side of the wire
  int64_t owner_bytes = 0;          // compute device: the owner's side
  int64_t gradient_bytes = 0;       // compute device: gradients of a momentum computed there
  int64_t momentum_bytes = 0;       // compute device: a momentum that is streamed

  int64_t host_bytes() const { return aligned(shard_wire_bytes) + aligned(low_precision_bytes); }
  int64_t device_bytes() const {
    return aligned(exchange_bytes) + aligned(owner_bytes) + aligned(gradient_bytes) +
           aligned(momentum_bytes);
  }
};

struct BufferSizes {
  int slots = 1;
  SlotSizes slot;
  int64_t matrix_numel = 0;   // fp32, compute device: one bucket is orthogonalised at a time
  int64_t scratch_numel = 0;  // fp32, compute device
  int64_t adamw_low_precision_bytes = 0;  // host: as in SlotSizes, one for each AdamW worker
  int64_t record_bytes = 0;  // compute device and host: what ranks tell each other at the end

  int64_t host_bytes() const {
    return slots * slot.host_bytes() + aligned(adamw_low_precision_bytes);
  }
  int64_t device_bytes() const {
    return slots * slot.device_bytes() + aligned(4 * matrix_numel) + aligned(4 * scratch_numel) +
           aligned(record_bytes);
  }
  int64_t total_bytes() const { return host_bytes() + device_bytes(); }
};

}  // namespace zeromuon::offload
