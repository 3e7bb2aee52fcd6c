// The kernels of one path, over [begin, end) of the arrays, on the calling thread.
//
// Note [One instruction set per file]
// csrc/ops/simd/<isa>.cpp is compiled with the flags of its instruction set and must not emit an
// inline function or template that another file could emit too: the linker keeps one copy of
// both, and a CPU without the instruction set would run into it. So everything in those files is
// in an anonymous namespace or static, they use no template of the standard library, and of
// elements.h only the fields. tests/csrc/isa_symbols.cmake looks at their symbols.
#pragma once

#include <cstdint>

#include "csrc/ops/arrays.h"
#include "csrc/ops/elements.h"

namespace zeromuon::ops {

// Types are checked by the caller. Those that return a word: not 0 when a value that they wrote is
// NaN or infinite.
struct KernelTable {
  uint32_t (*adamw)(const AdamWElement&, const AdamWArrays&, int64_t begin, int64_t end);
  uint32_t (*momentum)(const MomentumElement&, const MomentumArrays&, int64_t begin, int64_t end);
  uint32_t (*apply)(const ApplyElement&, const ApplyArrays&, int64_t begin, int64_t end);
  uint32_t (*encode)(const float* values, const Typed& out, int64_t begin, int64_t end);
  void (*decode)(const ConstTyped& in, float* values, int64_t begin, int64_t end);
  // For measurements: dst = a, and dst = a + scalar*b.
  void (*copy)(float* dst, const float* a, int64_t begin, int64_t end);
  void (*triad)(float* dst, const float* a, const float* b, float scalar, int64_t begin,
                int64_t end);
};

const KernelTable& reference_kernels();
const KernelTable& generic_kernels();
// Only on x86-64, and to be called only where the CPU has the instruction set.
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512_bf16_kernels();

}  // namespace zeromuon::ops
