// Sixteen lanes: AVX-512 F, BW, DQ and VL, and with AVX512_BF16 its conversion. For the anonymous
// namespaces of avx512.cpp and avx512_bf16.cpp.

constexpr int64_t kLanes = 16;
typedef __m512 F;

inline F splat(float x) { return _mm512_set1_ps(x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F root(F a) { return _mm512_sqrt_ps(a); }
inline F where_at_least_zero(F x, F a, F b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), b, a);
}

inline __m256i read_halves(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
inline F load(const float* at) { return _mm512_loadu_ps(at); }
inline F load(const BFloat16* at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read_halves(at)), 16));
}
inline F load(const Float16* at) { return _mm512_cvtph_ps(read_halves(at)); }

inline __m256i rounded_to_bf16(F x) {
  const __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, quiet));
}

inline __m256i halves(const BFloat16*, F x) {
#if defined(__AVX512BF16__)
  // The instruction takes a denormal for zero; the rest it rounds as above.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(x, kDenormal) == 0, 1)) {
    return (__m256i)_mm512_cvtneps_pbh(x);
  }
#endif
  return rounded_to_bf16(x);
}
inline __m256i halves(const Float16*, F x) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline void store(float* at, F x) { _mm512_storeu_ps(at, x); }
template <typename Half>
inline void store(Half* at, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), halves(at, x));
}
inline void stream(float* at, F x) { _mm512_stream_ps(at, x); }
inline void fence() { _mm_sfence(); }

typedef __mmask16 Bad;
inline Bad no_bad() { return 0; }
inline Bad or_bad(Bad bad, F x, uint32_t first_non_finite) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  const __m512i first = _mm512_set1_epi32(static_cast<int>(first_non_finite));
  return static_cast<Bad>(bad | _mm512_cmpge_epi32_mask(magnitude, first));
}
inline Bad or_non_finite(Bad bad, F x) {
  constexpr int kNanOrInfinity = 0x01 | 0x08 | 0x10 | 0x80;
  return static_cast<Bad>(bad | _mm512_fpclass_ps_mask(x, kNanOrInfinity));
}
inline uint32_t any(Bad bad) { return bad; }
