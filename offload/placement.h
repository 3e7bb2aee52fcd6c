// Where the bytes of an optimizer live and where Newton-Schulz runs. Chosen once, at bind.
#pragma once

#include <c10/core/Device.h>

#include "csrc/base/dtype.h"
#include "offload/momentum_home.h"

namespace zeromuon::offload {

struct Placement {
  c10::Device shard;    // master weights, gradients and AdamW's states
  c10::Device compute;  // collectives and Newton-Schulz
  MomentumHome momentum = MomentumHome::kShard;
  DType momentum_dtype = DType::kFloat32;

  // Whether buckets cross between two memories.
  bool staged() const { return shard != compute; }
};

}  // namespace zeromuon::offload
