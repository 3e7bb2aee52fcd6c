#include "csrc/formats/crc32.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace zeromuon::formats {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320u;
constexpr int kSlices = 8;  // bytes that the table way takes at once

using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
    tables[0][byte] = value;
  }
  for (int slice = 1; slice < kSlices; ++slice) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[slice - 1][byte];
      tables[slice][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

// The register, without the inversions at begin and end.
uint32_t advance_by_table(uint32_t value, const uint8_t* data, size_t bytes) {
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= value;
    value = 0;
    for (int i = 0; i < 8; ++i) value ^= kTables[7 - i][(word >> (8 * i)) & 0xff];
  }
  for (; bytes > 0; ++data, --bytes) value = (value >> 8) ^ kTables[0][(value ^ *data) & 0xff];
  return value;
}

#if defined(__x86_64__)
// Powers of x modulo the polynomial, bit-reflected, for folding by 512 and by 128 bits.
// After V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel
// 2009.
constexpr uint64_t kBy512[2] = {0x0154442bd4, 0x01c6e41596};
constexpr uint64_t kBy128[2] = {0x01751997d0, 0x00ccaa009e};

__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i value, __m128i factors,
                                                             __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(value, factors, 0x00);
  const __m128i high = _mm_clmulepi64_si128(value, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// bytes >= 64. Folds all whole 16-byte blocks into one, which the table way finishes.
__attribute__((target("pclmul,sse4.1"))) uint32_t advance_by_folding(uint32_t value,
                                                                     const uint8_t* data,
                                                                     size_t bytes) {
  const auto load = [&](size_t at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at));
  };
  __m128i lanes[4] = {load(0), load(16), load(32), load(48)};
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(value)));
  const __m128i by512 = _mm_set_epi64x(kBy512[1], kBy512[0]);
  size_t at = 64;
  for (; at + 64 <= bytes; at += 64) {
    for (int i = 0; i < 4; ++i) lanes[i] = fold(lanes[i], by512, load(at + 16 * i));
  }
  const __m128i by128 = _mm_set_epi64x(kBy128[1], kBy128[0]);
  __m128i folded = lanes[0];
  for (int i = 1; i < 4; ++i) folded = fold(folded, by128, lanes[i]);
  for (; at + 16 <= bytes; at += 16) folded = fold(folded, by128, load(at));
  uint8_t last[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(last), folded);
  return advance_by_table(advance_by_table(0, last, 16), data + at, bytes - at);
}
#endif

// a * b modulo the polynomial, bit-reflected: bit 31 is x^0.
uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if (a >> bit & 1) product ^= b;
    b = (b >> 1) ^ (b & 1 ? kPolynomial : 0);
  }
  return product;
}

uint32_t x_to_the_bits_of(uint64_t bytes) {
  uint32_t power = 1u << 31, square = 1u << 23;  // x^0, x^8
  for (; bytes > 0; bytes >>= 1) {
    if (bytes & 1) power = multiply(power, square);
    square = multiply(square, square);
  }
  return power;
}

}  // namespace

uint32_t crc32_by_table(uint32_t crc, const void* data, size_t bytes) {
  return ~advance_by_table(~crc, static_cast<const uint8_t*>(data), bytes);
}

uint32_t crc32(uint32_t crc, const void* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  if (folds && bytes >= 64) {
    return ~advance_by_folding(~crc, static_cast<const uint8_t*>(data), bytes);
  }
#endif
  return crc32_by_table(crc, data, bytes);
}

uint32_t crc32_combine(uint32_t first, uint32_t second, uint64_t second_bytes) {
  return multiply(x_to_the_bits_of(second_bytes), first) ^ second;
}

}  // namespace zeromuon::formats
