// Newton-Schulz with all matrices in float16.
#pragma once

#include <span>

#include "csrc/ops/newton_schulz/float16_ops.h"
#include "csrc/ops/newton_schulz/plan.h"

namespace zeromuon::ops {

// Note [float16 alone]
// X, R, P and Q exist in float16 only, in units (Note [Units]); products add up in fp32 and round
// once. It moves a third of the bytes of fp32 matrices with rounded copies beside them. It is as
// exact, because each error is one of a factor from the left, Q (1 + e) X, which turns singular
// vectors a little and leaves small singular values alone:
//   - The diagonal of P is added after its product, so that P is exactly symmetric, and X <- P X
//     needs no addend.
//   - b R in P = a I + b R + c R R is the rounded R, which makes P the polynomial of *one* matrix;
//     with an unrounded R there the largest singular values are off more.
//   - X itself is rounded once an iteration, or a segment; what that adds to a small singular value
//     grows like it, by the product of all a. Sets where that is above kMostGain are not taken.
// Source of the last two: measured, docs/numerics.md.
//
// matrices: at most plan.batch, of [plan.rows, plan.cols] fp32, in place. memory: the scratch of
// the plan.
void run_float16(const NewtonSchulzPlan& plan, std::span<float* const> matrices, float* memory,
                 Float16Ops& ops);

}  // namespace zeromuon::ops
