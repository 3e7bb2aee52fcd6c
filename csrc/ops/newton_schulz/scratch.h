// The scratch memory of one batch of matrices, laid out at plan time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/ops/newton_schulz/plan.h"

namespace zeromuon::ops {

// Elements whose squares one partial sum of the Frobenius norm adds up.
constexpr int64_t kNormChunk = 4096;

// Rows that are a multiple of 1 KiB apart fall into the same few cache sets: products of 1024 x
// 1024 are 10 % slower then (86 against 95 GFLOP/s), with oneDNN and AVX2 50 %.
constexpr int64_t row_stride(int64_t cols) { return cols % 256 == 0 ? cols + 32 : cols; }
// On GPUs rows begin where packs of 16 bytes do, and those of whole cache lines stay whole.
constexpr int64_t tensor_row_stride(int64_t cols) { return (cols + 7) / 8 * 8; }
inline int64_t row_stride(int64_t cols, const NewtonSchulzPlan& plan) {
  const bool tensors = plan.apply.backend == ProductBackend::kTensors;
  return tensors ? tensor_row_stride(cols) : row_stride(cols);
}

// B: batch; m, n: short and long side. Rows are row_stride() apart. Null where the plan has no use
// for it.
struct NewtonSchulzScratch {
  float* x;                      // [B, m, n]
  float* other;                  // [B, m, n]; null where the caller's memory serves
  BFloat16* x_rounded;           // [B, m, n]
  BFloat16* other_rounded;       // [B, m, n]
  float* squares[4];             // [B, m, m]; R, P, Q and a spare
  BFloat16* squares_rounded[4];  // [B, m, m]
  double* partial_sums;          // one per kNormChunk elements of a matrix
  float* row_scales;             // [B, m]
  int64_t numel;                 // fp32 elements in all
};

// The same of a plan whose matrices are in float16 alone.
struct Float16Scratch {
  Float16* x;            // [B, rows, cols]
  Float16* other;        // [B, rows, cols]
  Float16* squares[4];   // [B, m, m]; R, Q, P and a spare
  double* norm_parts;    // [B, kNormParts]
  void** pointers;       // [3, B, blocks]; null where squares are not cut
  std::byte* workspace;  // of kWorkspaceBytes
  int64_t numel;         // fp32 elements in all
};

// For cuBLAS, whose results may depend on how much there is: what it takes by default on the GPUs
// that want most.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

Float16Scratch lay_out_float16_scratch(const NewtonSchulzPlan& plan, float* memory);

// Every part begins on a cache line of `memory`.
NewtonSchulzScratch lay_out_scratch(const NewtonSchulzPlan& plan, float* memory);

inline int64_t scratch_numel(const NewtonSchulzPlan& plan) {
  return plan.float16_alone() ? lay_out_float16_scratch(plan, nullptr).numel
                              : lay_out_scratch(plan, nullptr).numel;
}

}  // namespace zeromuon::ops
