// Sizes of the buffers that a bucket in flight needs on one rank.
#pragma once

#include <cstdint>

namespace zeromuon::offload {

struct SlotSizes {
  int64_t shard_bytes = 0;    // wire side of the shard
  int64_t owner_bytes = 0;    // wire side of the owner
  int64_t matrix_numel = 0;   // fp32
  int64_t scratch_numel = 0;  // fp32

  int64_t total_bytes() const {
    return shard_bytes + owner_bytes + 4 * (matrix_numel + scratch_numel);
  }
};

}  // namespace zeromuon::offload
