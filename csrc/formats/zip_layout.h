// Signatures and fixed sizes of a zip archive's records (APPNOTE 4.3), without their names and
// extra fields.
#pragma once

#include <cstdint>

namespace zeromuon::formats::zip {

inline constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50,
                          kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
inline constexpr uint16_t kZip64Extra = 1;  // the id of that extra field
inline constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56,
                          kLocatorBytes = 20;

}  // namespace zeromuon::formats::zip
