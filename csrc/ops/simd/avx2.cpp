// Eight lanes: AVX2 and F16C. (FMA is part of this level, but fusing would change bits.)
#include <immintrin.h>

#include "csrc/ops/kernel_table.h"
#include "csrc/ops/simd/bfloat16_avx2.h"

namespace zeromuon::ops {
namespace {

constexpr int64_t kLanes = 8;
typedef __m256 F;

inline F splat(float x) { return _mm256_set1_ps(x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F root(F a) { return _mm256_sqrt_ps(a); }
inline F where_at_least_zero(F x, F a, F b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}

inline __m128i read_halves(const void* at) {
  return _mm_loadu_si128(static_cast<const __m128i*>(at));
}
inline F load(const float* at) { return _mm256_loadu_ps(at); }
inline F load(const BFloat16* at) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(read_halves(at)), 16));
}
inline F load(const Float16* at) { return _mm256_cvtph_ps(read_halves(at)); }

inline __m128i halves(const BFloat16*, F x) { return bfloat16_of(x); }
inline __m128i halves(const Float16*, F x) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline void store(float* at, F x) { _mm256_storeu_ps(at, x); }
template <typename Half>
inline void store(Half* at, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), halves(at, x));
}
inline void stream(float* at, F x) { _mm256_stream_ps(at, x); }
inline void fence() { _mm_sfence(); }

typedef __m256i Bad;
inline Bad no_bad() { return _mm256_setzero_si256(); }
inline Bad or_bad(Bad bad, F x, uint32_t first_non_finite) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
  const __m256i last = _mm256_set1_epi32(static_cast<int>(first_non_finite - 1));
  return _mm256_or_si256(bad, _mm256_cmpgt_epi32(magnitude, last));
}
inline Bad or_non_finite(Bad bad, F x) {
  return _mm256_or_si256(bad, _mm256_castps_si256(sub(x, x)));  // 0 or a NaN
}
inline uint32_t any(Bad bad) { return _mm256_testz_si256(bad, bad) ? 0u : 1u; }

#include "csrc/ops/simd/kernels.h"

}  // namespace

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace zeromuon::ops
