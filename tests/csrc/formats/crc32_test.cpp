#include "csrc/formats/crc32.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace zeromuon::formats {
namespace {

std::vector<uint8_t> random_bytes(size_t count) {
  std::mt19937 random(7);
  std::vector<uint8_t> out(count);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(random());
  return out;
}

TEST(Crc32, HasTheValueOfTheStandard) {
  const std::string text = "123456789";
  EXPECT_EQ(crc32(0, text.data(), text.size()), 0xcbf43926u);
  EXPECT_EQ(crc32_by_table(0, text.data(), text.size()), 0xcbf43926u);
}

TEST(Crc32, FoldingEqualsTheTableAtEveryLengthAndBeginning) {
  const std::vector<uint8_t> data = random_bytes(700);
  for (size_t begin = 0; begin < 5; ++begin) {
    for (size_t bytes = 0; bytes <= 600; ++bytes) {
      EXPECT_EQ(crc32(5, data.data() + begin, bytes), crc32_by_table(5, data.data() + begin, bytes))
          << bytes << " bytes from " << begin;
    }
  }
}

TEST(Crc32, PiecesCombineToTheWhole) {
  const std::vector<uint8_t> data = random_bytes(5000);
  const uint32_t whole = crc32(0, data.data(), data.size());
  for (const size_t cut : {0u, 1u, 63u, 64u, 999u, 4999u, 5000u}) {
    const uint32_t first = crc32(0, data.data(), cut);
    const uint32_t second = crc32(0, data.data() + cut, data.size() - cut);
    EXPECT_EQ(crc32_combine(first, second, data.size() - cut), whole) << cut;
    EXPECT_EQ(crc32(first, data.data() + cut, data.size() - cut), whole) << cut;
  }
}

}  // namespace
}  // namespace zeromuon::formats
