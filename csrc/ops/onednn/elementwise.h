// Momentum and AdamW in oneDNN's primitives, for comparison with the fused kernels. One chunk that
// fits L2 after the other goes through one primitive per operation, in the order of elements.h.
//
// Results, also what they return, are as csrc/ops/elementwise.h says, and do not depend on the
// number of threads. Raise ValueError for element types they do not
// take, and for cautious decay. Casts of the outputs are those of `casts`.
#pragma once

#include <cstdint>

#include "csrc/ops/kernel_table.h"

namespace zeromuon::ops::onednn {

// float32 gradient and momentum, any wire.
bool update_momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t numel,
                     const KernelTable& casts);

// float32 gradient and states, any low-precision output.
bool adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t numel,
           const KernelTable& casts);

}  // namespace zeromuon::ops::onednn
