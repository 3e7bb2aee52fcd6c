// How long one product takes when cut in a given way; what the tuned table is made from.
#pragma once

#include "csrc/ops/newton_schulz/tuned_table.h"

namespace zeromuon::ops {

struct ProductTiming {
  double seconds;  // of this thread's processor time, the least of the repetitions
  double flops;    // of the tiles computed
};

// Computes a product of `row.kind` for a short side m = row.short_side and a long side n, as a step
// of Newton-Schulz does, on this thread alone.
ProductTiming time_product(const TunedProduct& row, int64_t long_side, int repetitions);

}  // namespace zeromuon::ops
