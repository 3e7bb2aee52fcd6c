// Element-wise kernels on host memory: one pass each, raw pointers, no libtorch.
//
// numel: elements of each array, at least 0. Raise ValueError for element types that a kernel does
// not take and for kernels that cannot run here.
// Thread: each call opens its own OpenMP team; calls on disjoint ranges are independent.
#pragma once

#include <cstdint>

#include "csrc/ops/arrays.h"
#include "csrc/ops/cpu_kernels.h"
#include "csrc/ops/elements.h"

namespace zeromuon::ops {

// Those that return a bool: false when a value that they wrote, to any of their arrays, is NaN or
// infinite in the type of its array. Everything is written all the same.

// Advances the momentum and writes the tensor to orthogonalise to `wire`.
bool update_momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t numel,
                     CpuKernels kernels = CpuKernels::kAuto);

bool apply_update(const ApplyElement& element, const ApplyArrays& arrays, int64_t numel,
                  CpuKernels kernels = CpuKernels::kAuto);

bool adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t numel,
           CpuKernels kernels = CpuKernels::kAuto);

// Casts.
bool encode_values(const float* values, const Typed& out, int64_t numel,
                   CpuKernels kernels = CpuKernels::kAuto);
void decode_values(const ConstTyped& in, float* values, int64_t numel,
                   CpuKernels kernels = CpuKernels::kAuto);

// The same for what travels: float32 or bfloat16.
bool encode_wire(const float* values, const Typed& wire, int64_t numel,
                 CpuKernels kernels = CpuKernels::kAuto);
void decode_wire(const ConstTyped& wire, float* values, int64_t numel,
                 CpuKernels kernels = CpuKernels::kAuto);

// What memory gives, to measure the kernels against: dst = a, and dst = a + scalar*b, with the same
// team and the stores that suit a pure output best.
void stream_copy(float* dst, const float* a, int64_t numel);
void stream_triad(float* dst, const float* a, const float* b, float scalar, int64_t numel);

}  // namespace zeromuon::ops
