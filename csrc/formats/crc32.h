// CRC-32 as in zip: reflected polynomial 0xEDB88320.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeromuon::formats {

// Goes on from `crc`, which is 0 at the beginning.
uint32_t crc32(uint32_t crc, const void* data, size_t bytes);

// The same without special instructions.
uint32_t crc32_by_table(uint32_t crc, const void* data, size_t bytes);

// The CRC of two pieces put together, from that of each and the length of the second.
uint32_t crc32_combine(uint32_t first, uint32_t second, uint64_t second_bytes);

}  // namespace zeromuon::formats
