#include "csrc/formats/safetensors.h"

#include <gmock/gmock.h>

#include "tests/csrc/formats/builders.h"

namespace zeromuon::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Safetensors : public FolderTest {
 protected:
  std::string make(const std::string& header, size_t data_bytes, int64_t claimed = -1) {
    const uint64_t length = claimed >= 0 ? static_cast<uint64_t>(claimed) : header.size();
    return file("m.safetensors", le(length) + header + std::string(data_bytes, 'd'));
  }
  std::string refusal(const std::string& header, size_t data_bytes, int64_t claimed = -1) {
    const std::string name = make(header, data_bytes, claimed);
    return error_of([&] { SafetensorsFile opened(name); });
  }
};

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  int64_t begin, int64_t end) {
  return concat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape,
                "],\"data_offsets\":[", begin, ",", end, "]}");
}

TEST_F(Safetensors, TensorsAndMetadataAreRead) {
  const SafetensorsFile opened(
      make("{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "2,2", 12, 20) + "," +
               entry("a", "F32", "3", 0, 12) + "," + entry("e", "I64", "0,5", 20, 20) + "}  ",
           20));
  EXPECT_EQ(opened.metadata().at("format"), "pt");
  ASSERT_EQ(opened.entries().size(), 3u);
  EXPECT_EQ(opened.entries()[0].name, "a");
  EXPECT_THAT(opened.entries()[1].shape, ElementsAre(2, 2));
}

TEST_F(Safetensors, EveryTruncationIsAnError) {
  const std::string whole = bytes_of_file(make("{" + entry("a", "F32", "3", 0, 12) + "}", 12));
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const std::string name = file("cut.safetensors", whole.substr(0, bytes));
    EXPECT_THAT(error_of([&] { SafetensorsFile opened(name); }), HasSubstr("cut.safetensors"));
  }
}

TEST_F(Safetensors, EveryFlippedBitIsAnErrorOrAnotherHeader) {
  const std::string whole = bytes_of_file(make("{" + entry("a", "F32", "3", 0, 12) + "}", 12));
  for (size_t bit = 0; bit < (whole.size() - 12) * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    try {
      const SafetensorsFile opened(file("m.safetensors", damaged));
      for (const auto& e : opened.entries()) {
        EXPECT_LE(e.file_offset + e.bytes, opened.file().size());
      }
    } catch (const FormatError& error) {
      EXPECT_FALSE(error.finding().remedy.empty());
    }
  }
}

TEST_F(Safetensors, HeadersThatDoNotAddUpAreRefused) {
  EXPECT_THAT(refusal("{" + entry("a", "F32", "3", 0, 8) + "}", 8), HasSubstr("size of the shape"));
  EXPECT_THAT(refusal("{" + entry("a", "F32", "3", 4, 16) + "}", 16), HasSubstr("holes"));
  EXPECT_THAT(
      refusal("{" + entry("a", "F32", "3", 0, 12) + "," + entry("b", "F32", "3", 8, 20) + "}", 20),
      HasSubstr("overlaps"));
  EXPECT_THAT(refusal("{" + entry("a", "F32", "3", 0, 12) + "}", 13), HasSubstr("more bytes"));
  EXPECT_THAT(refusal("{" + entry("a", "F32", "3", 12, 0) + "}", 12), HasSubstr("in order"));
  EXPECT_THAT(refusal("{" + entry("a", "F32", "4294967296,4294967296,4", 0, 0) + "}", 0),
              HasSubstr("size of the shape"));
  EXPECT_THAT(refusal("{" + entry("a", "F99", "3", 0, 12) + "}", 12), HasSubstr("F99"));
}

TEST_F(Safetensors, AnElementTypeOfALaterVersionIsNotCalledDamage) {
  const std::string text = refusal("{" + entry("a", "F4_X", "2", 0, 1) + "}", 1);
  EXPECT_THAT(text, HasSubstr("\"F4_X\" for \"a\"; take a newer version"));
  EXPECT_THAT(text, Not(HasSubstr("damaged")));
}

TEST_F(Safetensors, DuplicateKeysAreRefused) {
  const std::string a = entry("a", "F32", "1", 0, 4);
  EXPECT_THAT(refusal("{" + a + "," + a + "}", 4), HasSubstr("twice"));
  EXPECT_THAT(refusal("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],"
                      "\"data_offsets\":[0,1]}}",
                      1),
              HasSubstr("once each"));
}

TEST_F(Safetensors, OtherJsonIsRefused) {
  for (const char* header :
       {"[]", "{\"a\":1}", "{\"a\":null}", "{\"a\":{\"dtype\":\"F32\"}}", "{\"a\":{\"b\":{}}}",
        "{\"a\":{\"dtype\":[1],\"shape\":[],\"data_offsets\":[0,4]}}", "{\"a\":\"b\"}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", "{", "{}x",
        "{\"\xff\":{}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":1}}"}) {
    EXPECT_THAT(refusal(header, 1), HasSubstr("m.safetensors")) << header;
  }
  EXPECT_THAT(refusal("{\"a\":" + std::string(100000, '[') + "}", 0), HasSubstr("m.safetensors"));
}

TEST_F(Safetensors, HugeClaimedHeadersAreRefused) {
  EXPECT_THAT(refusal("{}", 0, 100'000'001), HasSubstr("100 MB"));
  EXPECT_THAT(refusal("{}", 0, INT64_MAX), HasSubstr("100 MB"));
  EXPECT_THAT(refusal("{}", 0, 0), HasSubstr("length of a header"));
}

TEST_F(Safetensors, WrittenFilesAreReadBack) {
  const std::vector<PlannedTensor> tensors = {{"flag", ElementType::kBool, {3}},
                                              {"w \"quoted\"", ElementType::kFloat32, {2, 1}},
                                              {"scalar", ElementType::kInt64, {}}};
  SafetensorsWriter writer(path("w.safetensors"), tensors, {{"made_by", "test"}}, false);
  writer.write(0, 0, "abc", 3);
  writer.write(1, 4, "5678", 4);
  writer.write(1, 0, "1234", 4);
  writer.write(2, 0, "12345678", 8);
  writer.finish();
  const SafetensorsFile opened(path("w.safetensors"));
  EXPECT_EQ(opened.metadata().at("format"), "pt");
  EXPECT_EQ(opened.metadata().at("made_by"), "test");
  const std::string bytes = bytes_of_file(path("w.safetensors"));
  for (const auto& e : opened.entries()) {
    EXPECT_EQ(e.file_offset % static_cast<uint64_t>(size_of(e.type)), 0u);
    if (e.name != "w \"quoted\"") continue;
    EXPECT_EQ(bytes.substr(e.file_offset, 8), "12345678");
  }
}

TEST_F(Safetensors, ShardsKeepTheOrderAndTheLimit) {
  const std::vector<PlannedTensor> tensors = {{"a", ElementType::kFloat32, {10}},
                                              {"b", ElementType::kFloat32, {10}},
                                              {"c", ElementType::kFloat32, {100}},
                                              {"d", ElementType::kFloat32, {1}}};
  const auto shards = plan_shards(tensors, 80);
  ASSERT_EQ(shards.size(), 3u);
  EXPECT_THAT(shards[0], ElementsAre(0, 1));
  EXPECT_THAT(shards[1], ElementsAre(2));
  EXPECT_EQ(plan_shards(tensors, 0).size(), 1u);
  EXPECT_EQ(shard_name(1, 3), "model-00002-of-00003.safetensors");
  write_safetensors_index(folder_.string(), tensors, shards, false);
  const auto index = read_safetensors_index(path("model.safetensors.index.json"));
  EXPECT_EQ(index.at("c"), "model-00002-of-00003.safetensors");
  EXPECT_THAT(bytes_of_file(path("model.safetensors.index.json")),
              HasSubstr("\"total_size\": 484"));
}

TEST_F(Safetensors, AnIndexThatLeavesItsFolderIsRefused) {
  for (const char* text :
       {"{\"weight_map\":{\"a\":\"../x\"}}", "{\"weight_map\":{\"a\":\"/x\"}}",
        "{\"weight_map\":{\"a\":\"\"}}", "{\"weight_map\":{\"a\":1}}", "{\"metadata\":{}}",
        "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "{\"weight_map\":{\"a\":[]}}"}) {
    const std::string name = file("model.safetensors.index.json", text);
    EXPECT_THAT(error_of([&] { read_safetensors_index(name); }), HasSubstr("index.json")) << text;
  }
}

TEST_F(Safetensors, WhatTheFormatCannotHoldIsRefused) {
  EXPECT_THROW(SafetensorsWriter(path("w"), {{"a", ElementType::kComplex128, {1}}}, {}, false),
               ValueError);
  EXPECT_THROW(SafetensorsWriter(path("w"), {{"__metadata__", ElementType::kBool, {1}}}, {}, false),
               ValueError);
  EXPECT_TRUE(names().empty());
}

}  // namespace
}  // namespace zeromuon::formats
