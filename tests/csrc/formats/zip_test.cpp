#include <gmock/gmock.h>

#include "csrc/formats/zip_reader.h"
#include "csrc/formats/zip_writer.h"
#include "tests/csrc/formats/builders.h"

namespace zeromuon::formats {
namespace {

using ::testing::HasSubstr;

class Zip : public FolderTest {
 protected:
  std::unique_ptr<ZipReader> read(const std::string& bytes) {
    return std::make_unique<ZipReader>(std::make_shared<InputFile>(file("a.zip", bytes)));
  }
  std::string refusal(const std::string& bytes) {
    return error_of([&] {
      const auto zip = read(bytes);
      for (const ZipRecord& record : zip->records()) zip->read(record, 1 << 20);
    });
  }
};

TEST_F(Zip, StoredRecordsAreRead) {
  const auto zip = read(make_zip({{"a/x", "hello"}, {"a/empty", ""}, {"a/y", "world!"}}));
  ASSERT_EQ(zip->records().size(), 3u);
  const auto bytes = zip->read(*zip->find("a/y"), 100);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "world!");
  EXPECT_EQ(zip->find("a/z"), nullptr);
}

TEST_F(Zip, WhatTheWriterWroteIsReadBackAligned) {
  ZipWriter writer(path("w.zip"), false);
  const std::string text = "some bytes";
  const int first = writer.add("a/one", text.size()), second = writer.add("a/two", 0);
  writer.begin();
  writer.write(first, 0, text.data(), text.size());
  writer.set_crc(first, crc32(0, text.data(), text.size()));
  writer.set_crc(second, 0);
  writer.finish();
  const ZipReader zip(std::make_shared<InputFile>(path("w.zip")));
  for (const ZipRecord& record : zip.records()) EXPECT_EQ(record.data_offset % 64, 0u);
  const auto bytes = zip.read(*zip.find("a/one"), 100);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), text);
}

TEST_F(Zip, SizesAndOffsetsAbove4GiBSurvive) {
  constexpr uint64_t kHuge = (4ull << 30) + 12345;
  {
    ZipWriter writer(path("huge.zip"), false);
    const int huge = writer.add("a/huge", kHuge), after = writer.add("a/after", 3);
    // Without begin(): the file stays sparse and takes no space.
    writer.write(huge, kHuge - 3, "end", 3);
    writer.write(after, 0, "abc", 3);
    writer.set_crc(huge, 0);
    writer.set_crc(after, crc32(0, "abc", 3));
    writer.finish();
  }
  const ZipReader zip(std::make_shared<InputFile>(path("huge.zip")));
  EXPECT_EQ(zip.find("a/huge")->bytes, kHuge);
  EXPECT_GT(zip.find("a/after")->data_offset, kHuge);
  const auto bytes = zip.read(*zip.find("a/after"), 100);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "abc");
}

TEST_F(Zip, EveryTruncationIsAnError) {
  const std::string whole = make_zip({{"a/x", "hello"}, {"a/y", "world!"}});
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    EXPECT_THAT(refusal(whole.substr(0, bytes)), HasSubstr("a.zip")) << bytes;
  }
}

TEST_F(Zip, EveryFlippedBitIsAnErrorOrHarmless) {
  const std::string whole = make_zip({{"a/x", "hello"}, {"a/y", "world!"}});
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    try {
      const auto zip = read(damaged);
      for (const ZipRecord& record : zip->records()) {
        const auto bytes = zip->read(record, 1 << 20);
        const std::string text(bytes.begin(), bytes.end());
        EXPECT_TRUE(text == "hello" || text == "world!") << "bit " << bit;
      }
    } catch (const FormatError& error) {
      EXPECT_FALSE(error.finding().remedy.empty());
    }
  }
}

TEST_F(Zip, AWrongCrcIsToldWithItsRecord) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 0, 1}})), HasSubstr("a/x"));
}

TEST_F(Zip, OverlappingRecordsAreRefused) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello"}, {"a/y", "world", 0, 0, -1, -1, 0, "a/x"}})),
              HasSubstr("overlap"));
}

TEST_F(Zip, ARecordInsideAnotherOnesDataIsRefused) {
  const std::string inner = make_zip({{"b", "inner"}}).substr(0, 30 + 1 + 5);
  const auto offset = static_cast<int64_t>(30 + 1);
  EXPECT_THAT(refusal(make_zip({{"a", inner}, {"b", "inner", 0, 0, -1, -1, offset}})),
              HasSubstr("overlap"));
}

TEST_F(Zip, OffsetsAndSizesBeyondTheFileAreRefused) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 0, -1, 1 << 30}})), HasSubstr("a/x"));
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 0, -1, -1, 1 << 30}})), HasSubstr("a/x"));
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 0, -1, 0xffffffffll}})), HasSubstr("ZIP64"));
}

TEST_F(Zip, ClaimedCountsBeyondTheDirectoryAreRefused) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello"}}, 60000)), HasSubstr("60000"));
}

TEST_F(Zip, DuplicateNamesAreRefused) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello"}, {"a/x", "world"}})), HasSubstr("differ"));
}

TEST_F(Zip, NamesThatLeaveTheFolderAreRefused) {
  for (const char* name : {"../x", "a/../../x", "/etc/x", "a\\x", "a/..", ".."}) {
    EXPECT_THAT(refusal(make_zip({{name, "x"}})), HasSubstr("inside a folder")) << name;
  }
  EXPECT_THAT(refusal(make_zip({{std::string("a\0b", 3), "x"}})), HasSubstr("inside a folder"));
  EXPECT_EQ(read(make_zip({{"a/..b", "x"}, {".data/x", "y"}}))->records().size(), 2u);
}

TEST_F(Zip, CompressedAndEncryptedRecordsAreRefusedWithARemedy) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 8}})), HasSubstr("torch.save"));
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 1}})), HasSubstr("encrypted"));
}

TEST_F(Zip, ALocalHeaderOfAnotherNameIsRefused) {
  EXPECT_THAT(refusal(make_zip({{"a/x", "hello", 0, 0, -1, -1, -1, "a/y"}})), HasSubstr("a/x"));
}

TEST_F(Zip, ARecordLargerThanTheReaderWantsIsRefusedBeforeItIsRead) {
  const auto zip = read(make_zip({{"a/x", "hello"}}));
  EXPECT_THAT(error_of([&] { zip->read(zip->records()[0], 4); }), HasSubstr("at most 4"));
}

}  // namespace
}  // namespace zeromuon::formats
