// Element types that travel between ranks, and their conversions, for host and device code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ZM_HOST_DEVICE __host__ __device__
#else
#define ZM_HOST_DEVICE
#endif

namespace zeromuon {

enum class DType : uint8_t { kFloat32, kBFloat16 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
constexpr const char* name_of(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : "bfloat16";
}

ZM_HOST_DEVICE inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

ZM_HOST_DEVICE inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// True for NaN and both infinities: all exponent bits are set.
ZM_HOST_DEVICE inline bool is_non_finite(float value) {
  return (bits_of(value) & 0x7f800000u) == 0x7f800000u;
}

// bfloat16 is the upper half of a float32. `encode` rounds to nearest, ties to even, and keeps
// a NaN a NaN.
struct BFloat16 {
  uint16_t bits;
};

ZM_HOST_DEVICE inline void encode(float value, float& out) { out = value; }
ZM_HOST_DEVICE inline void encode(float value, BFloat16& out) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}
ZM_HOST_DEVICE inline float decode(float value) { return value; }
ZM_HOST_DEVICE inline float decode(BFloat16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

}  // namespace zeromuon
