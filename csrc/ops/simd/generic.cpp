// Four lanes of the compiler's own vectors: SSE2 on x86-64, whatever there is elsewhere.
#include "csrc/ops/kernel_table.h"

namespace zeromuon::ops {
namespace {

constexpr int64_t kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef uint16_t H __attribute__((vector_size(8)));

inline F splat(float x) { return F{x, x, x, x}; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F root(F a) {
  return F{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
           __builtin_sqrtf(a[3])};
}

template <typename Vector>
inline Vector read(const void* at) {
  Vector value;
  __builtin_memcpy(&value, at, sizeof value);
  return value;
}

inline U select(U mask, U yes, U no) { return (mask & yes) | (~mask & no); }
inline U greater(U a, uint32_t b) { return (U)(a > b); }
inline F where_at_least_zero(F x, F a, F b) { return (F)select((U)(x >= F{}), (U)a, (U)b); }
inline void store_halves(void* at, U halves) {
  const H narrow = __builtin_convertvector(halves, H);
  __builtin_memcpy(at, &narrow, sizeof narrow);
}

inline F load(const float* at) { return read<F>(at); }
inline F load(const BFloat16* at) { return (F)(__builtin_convertvector(read<H>(at), U) << 16); }
inline F load(const Float16* at) {
  const U bits = __builtin_convertvector(read<H>(at), U), magnitude = bits & 0x7fffu;
  const U normal = (magnitude << 13) + 0x38000000u;
  const U denormal = (U)(__builtin_convertvector(magnitude, F) * 0x1p-24f);
  const U special = 0x7f800000u | magnitude << 13 | (greater(magnitude, 0x7c00u) & 0x00400000u);
  const U finite = select(greater(magnitude, 0x03ffu), normal, denormal);
  return (F)((bits & 0x8000u) << 16 | select(greater(magnitude, 0x7bffu), special, finite));
}

inline void store(float* at, F x) { __builtin_memcpy(at, &x, sizeof x); }
inline void store(BFloat16* at, F x) {
  const U bits = (U)x;
  const U rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const U nan = greater(bits & 0x7fffffffu, 0x7f800000u);
  store_halves(at, select(nan, bits >> 16 | 0x40u, rounded));
}
inline void store(Float16* at, F x) {
  const U bits = (U)x, magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const U denormal = (U)((F)magnitude + 0.5f) - 0x3f000000u;
  const U nan = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  U half = select(greater(magnitude, 0x387fffffu), normal, denormal);
  half = select(greater(magnitude, Range<Float16>::kFirstNonFinite - 1), U{} + 0x7c00u, half);
  half = select(greater(magnitude, 0x7f800000u), nan, half);
  store_halves(at, (bits >> 16 & 0x8000u) | half);
}

// No portable way past the caches.
inline void stream(float* at, F x) { store(at, x); }
inline void fence() {}

typedef U Bad;
inline Bad no_bad() { return U{}; }
inline Bad or_bad(Bad bad, F x, uint32_t first_non_finite) {
  return bad | greater((U)x & 0x7fffffffu, first_non_finite - 1);
}
inline Bad or_non_finite(Bad bad, F x) { return bad | (U)(x - x); }  // 0 or a NaN
inline uint32_t any(Bad bad) { return bad[0] | bad[1] | bad[2] | bad[3]; }

#include "csrc/ops/simd/kernels.h"

}  // namespace

const KernelTable& generic_kernels() { return kTable; }

}  // namespace zeromuon::ops
