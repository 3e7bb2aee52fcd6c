// Element-wise kernels on host memory: one pass each, raw pointers, no libtorch.
//
// L: elements of the range, at least 0. Ranges of different arguments must not overlap.
// Thread: each call opens its own OpenMP team; calls on disjoint ranges are independent.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"
#include "csrc/ops/elements.h"

namespace zeromuon::ops {

// Advances `momentum` and writes the tensor to orthogonalise to `wire`, cast to its dtype.
// Returns false when a written value is NaN or infinite; everything is written all the same.
bool update_momentum(const MomentumElement& element, const float* gradient,  // [L] fp32
                     float* momentum,                                        // [L] fp32
                     void* wire, DType wire_dtype,                           // [L]
                     int64_t numel);

void apply_update(const ApplyElement& element, float* weight,  // [L] fp32 master
                  const void* update, DType update_dtype,      // [L]
                  int64_t numel);

void adamw(const AdamWElement& element, float* weight, const float* gradient,  // [L] fp32
           float* exp_avg, float* exp_avg_sq,                                  // [L] fp32
           int64_t numel);

// Casts. `encode_wire` returns false when a value read is NaN or infinite.
bool encode_wire(const float* values, void* wire, DType wire_dtype, int64_t numel);
void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel);

}  // namespace zeromuon::ops
