// The buffers that a bucket in flight occupies, and those that all buckets share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "offload/backend.h"
#include "offload/pinned_arena.h"
#include "offload/slot_sizes.h"

namespace zeromuon::offload {

// Serves one bucket after the other. Null where the plan has no use for a buffer; where nothing is
// staged, the shard's side of the wire is the exchange buffer.
using Slot = PerSlotBuffer<std::byte*>;

// All buffers of a step, allocated once at bind; exactly `sizes`.
// Thread: made and destroyed by one thread; the memory is used by the tasks of lanes.
class StepBuffers {
 public:
  StepBuffers(const BufferSizes& sizes, Backend& backend);

  const std::vector<Slot>& slots() const { return slots_; }
  float* matrices() const { return matrices_; }
  float* scratch() const { return scratch_; }
  std::byte* records() const { return records_; }
  // [workers] host, pinned; null where cast weights need no way to a device.
  std::byte* adamw_low_precision(int worker, int64_t bytes) const {
    return adamw_low_precision_ == nullptr ? nullptr : adamw_low_precision_ + worker * bytes;
  }

  // word_bytes of the host.
  std::byte* words() const { return words_; }

  // [workers] words of the shard's memory.
  uint64_t* alarm(int worker) const { return alarms_ + worker; }

  int64_t host_bytes() const { return arena_ ? arena_->bytes() : 0; }
  int64_t pinned_bytes() const { return arena_ ? arena_->registered_bytes() : 0; }
  // Why the host part is pageable; "" when it is pinned or needs no pinning.
  std::string warning() const { return arena_ ? arena_->warning() : std::string(); }

 private:
  std::unique_ptr<PinnedArena> arena_;  // null when nothing is staged
  std::vector<Memory> device_;
  std::vector<Slot> slots_;
  float *matrices_ = nullptr, *scratch_ = nullptr;
  uint64_t* alarms_ = nullptr;
  std::byte *records_ = nullptr, *adamw_low_precision_ = nullptr, *words_ = nullptr;
  std::vector<uint64_t> own_words_;  // where they need no pinning
};

}  // namespace zeromuon::offload
