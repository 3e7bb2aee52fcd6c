#include <immintrin.h>

#include "csrc/ops/kernel_table.h"

namespace zeromuon::ops {
namespace {

#include "csrc/ops/simd/avx512.h"
#include "csrc/ops/simd/kernels.h"

}  // namespace

const KernelTable& avx512_bf16_kernels() { return kTable; }

}  // namespace zeromuon::ops
