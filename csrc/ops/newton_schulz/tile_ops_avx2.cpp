#include <immintrin.h>

#include "csrc/ops/newton_schulz/tile_ops.h"
#include "csrc/ops/simd/bfloat16_avx2.h"

namespace zeromuon::ops::avx2 {
namespace {

// Eight values at any address.
inline void round8(const float* in, BFloat16* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bfloat16_of(_mm256_loadu_ps(in)));
}

struct Block8 {
  __m256 rows[8];

  static Block8 load(const float* in, int64_t stride) {
    Block8 block;
    for (int r = 0; r < 8; ++r) block.rows[r] = _mm256_loadu_ps(in + r * stride);
    return block;
  }
  void store(float* out, int64_t stride) const {
    for (int r = 0; r < 8; ++r) _mm256_storeu_ps(out + r * stride, rows[r]);
  }
  void store_rounded(BFloat16* out, int64_t stride) const {
    for (int r = 0; r < 8; ++r) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + r * stride), bfloat16_of(rows[r]));
    }
  }
  void scale(float alpha) {
    for (__m256& row : rows) row = _mm256_mul_ps(_mm256_set1_ps(alpha), row);
  }
  void combine(float alpha, float beta, const Block8& addend) {
    for (int r = 0; r < 8; ++r) {
      rows[r] = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(alpha), rows[r]),
                              _mm256_mul_ps(_mm256_set1_ps(beta), addend.rows[r]));
    }
  }
  void transpose() {
    __m256 pairs[8], quads[8];
    for (int r = 0; r < 8; r += 2) {
      pairs[r] = _mm256_unpacklo_ps(rows[r], rows[r + 1]);
      pairs[r + 1] = _mm256_unpackhi_ps(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
      quads[r] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
      quads[r + 1] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0xee);
      quads[r + 2] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
      quads[r + 3] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xee);
    }
    for (int r = 0; r < 4; ++r) {
      rows[r] = _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x20);
      rows[r + 4] = _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x31);
    }
  }
};

}  // namespace

#include "csrc/ops/newton_schulz/tile_ops.inc"

}  // namespace zeromuon::ops::avx2
