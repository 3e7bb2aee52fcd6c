// Element types and their conversions, for host and device code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ZM_HOST_DEVICE __host__ __device__
#else
#define ZM_HOST_DEVICE
#endif

namespace zeromuon {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
constexpr const char* name_of(DType dtype) {
  if (dtype == DType::kFloat16) return "float16";
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

// bfloat16 is the upper half of a float32. `encode` rounds to nearest, ties to even, and keeps
// a NaN a NaN.
struct BFloat16 {
  uint16_t bits;
};

// IEEE binary16. `encode` rounds to nearest, ties to even, makes infinity of 65520 and more, and
// quiets a NaN while keeping its upper payload; `decode` quiets too: what F16C's instructions do.
struct Float16 {
  uint16_t bits;
};

// From which magnitude on (the bits of a float32 without its sign) an encoded value is NaN or
// infinite.
template <typename T>
struct Range;
template <>
struct Range<float> {
  enum : uint32_t { kFirstNonFinite = 0x7f800000u };
};
template <>
struct Range<BFloat16> {
  enum : uint32_t { kFirstNonFinite = 0x7f7f8000u };
};
template <>
struct Range<Float16> {
  enum : uint32_t { kFirstNonFinite = 0x477ff000u };
};

template <typename T>
ZM_HOST_DEVICE inline bool non_finite_as(float value) {
  return (bits_of(value) & 0x7fffffffu) >= Range<T>::kFirstNonFinite;
}

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

ZM_HOST_DEVICE inline void encode(float value, Float16& out) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= Range<Float16>::kFirstNonFinite) {
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // the last place of 0.5f is that of a denormal half, 2^-24
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  }
  out.bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
}
ZM_HOST_DEVICE inline float decode(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude > 0x7c00u) return float_of(sign | 0x7fc00000u | magnitude << 13);
  if (magnitude == 0x7c00u) return float_of(sign | 0x7f800000u);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}

}  // namespace zeromuon
