#include "csrc/formats/torch_file.h"

#include <gmock/gmock.h>

#include "csrc/formats/torch_writer.h"
#include "tests/csrc/formats/builders.h"

namespace zeromuon::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TorchFiles : public FolderTest {
 protected:
  std::string refusal(const std::string& bytes) {
    return error_of([&] { TorchFile opened(file("t.pt", bytes)); });
  }
  void write_all(TorchFileWriter& writer, int storage, const std::string& bytes) {
    writer.write(storage, 0, bytes.data(), bytes.size());
    writer.set_crc(storage, crc32(0, bytes.data(), bytes.size()));
  }
};

const std::string kTwoByThree = "K\x02K\x03\x86", kRowMajor = "K\x03K\x01\x86";

TEST_F(TorchFiles, ATensorIsFoundWithItsPlaceInTheFile) {
  const std::string data = "0123456789abcdef0123456789abcdef";
  const std::string bytes = make_torch_file(tensor_pickle(8, 2, kTwoByThree, kRowMajor), {data});
  const TorchFile torch(file("t.pt", bytes));
  const StoredTensor tensor = torch.tensor(torch.root()).value();
  EXPECT_EQ(tensor.type, ElementType::kFloat32);
  EXPECT_THAT(tensor.shape, ElementsAre(2, 3));
  EXPECT_TRUE(tensor.contiguous());
  EXPECT_EQ(bytes.substr(tensor.file_offset, 24), data.substr(8, 24));
  EXPECT_FALSE(torch.tensor(0).has_value());
}

TEST_F(TorchFiles, ViewsBeyondTheirStorageAreRefused) {
  const std::string data(32, 'x');
  const auto refused = [&](int elements, int offset, const std::string& shape,
                           const std::string& strides) {
    return refusal(make_torch_file(tensor_pickle(elements, offset, shape, strides), {data}));
  };
  const std::string huge = "\x8a\x08" + le<int64_t>(1ll << 62);
  EXPECT_THAT(refused(8, 3, kTwoByThree, kRowMajor), HasSubstr("inside the 8 elements"));
  EXPECT_THAT(refused(8, -1, kTwoByThree, kRowMajor), HasSubstr("t.pt"));
  EXPECT_THAT(refused(8, 0, kTwoByThree, "K\x09K\x01\x86"), HasSubstr("inside the 8 elements"));
  EXPECT_THAT(refused(8, 0, huge + huge + "\x86", huge + huge + "\x86"), HasSubstr("t.pt"));
  EXPECT_THAT(refused(8, 0, huge + "\x85", "K" + le<uint8_t>(0) + "\x85"), HasSubstr(""));
  EXPECT_THAT(refused(8, 0, kTwoByThree, "K\x01\x85"), HasSubstr("t.pt"));
  EXPECT_THAT(refused(8, 0, "J" + le<int32_t>(-2) + "\x85", "K\x01\x85"), HasSubstr("t.pt"));
  EXPECT_THAT(refused(9, 0, kTwoByThree, kRowMajor), HasSubstr("9 elements"));
}

TEST_F(TorchFiles, AMissingStorageIsToldByName) {
  EXPECT_THAT(refusal(make_torch_file(tensor_pickle(8, 0, kTwoByThree, kRowMajor))),
              HasSubstr("data/0"));
}

TEST_F(TorchFiles, WhatIsNoTorchFileIsRefusedWithARemedy) {
  EXPECT_THAT(refusal(""), HasSubstr("empty"));
  EXPECT_THAT(refusal("\x80\x02\x8a\x0a rest of a legacy file"), HasSubstr("torch 1.6"));
  EXPECT_THAT(refusal("something else"), HasSubstr("zip archive"));
  EXPECT_THAT(refusal(make_zip({{"a/b", "x"}})), HasSubstr("data.pkl"));
  EXPECT_THAT(refusal(make_zip({{"a/data.pkl", "\x80\x02N."}, {"b/data.pkl", "\x80\x02N."}})),
              HasSubstr("data.pkl"));
  EXPECT_THAT(refusal(make_zip({{"a/data.pkl", "\x80\x02N."}, {"a/byteorder", "big"}})),
              HasSubstr("little-endian"));
  EXPECT_THAT(error_of([&] { TorchFile(path("absent.pt")); }), HasSubstr("check the path"));
  EXPECT_THAT(error_of([&] { TorchFile(folder_.string()); }), HasSubstr("regular file"));
}

TEST_F(TorchFiles, WrittenTensorsAndValuesAreReadBack) {
  {
    TorchFileWriter writer(path("w.pt"), false);
    PickleGraph& graph = writer.graph();
    const int storage = writer.add_storage(ElementType::kFloat32, 24);
    const int shared = writer.add_storage(ElementType::kBFloat16, 8);
    const NodeId root = graph.dict();
    graph.set(root, "w", writer.add_tensor(storage, ElementType::kFloat32, {2, 3}));
    graph.set(root, "head", writer.add_tensor(shared, ElementType::kBFloat16, {2}, 2));
    graph.set(root, "tail", writer.add_tensor(shared, ElementType::kBFloat16, {2, 2}, 0, {1, 2}));
    graph.set(root, "shape", graph.size_of_shape({2, 3}));
    writer.begin(root);
    write_all(writer, storage, std::string(24, 'a'));
    write_all(writer, shared, "01234567");
    writer.finish();
  }
  const TorchFile torch(path("w.pt"));
  const PickleGraph& graph = torch.graph();
  EXPECT_THAT(torch.tensor(graph.get(torch.root(), "w"))->shape, ElementsAre(2, 3));
  const auto head = torch.tensor(graph.get(torch.root(), "head")).value();
  const auto tail = torch.tensor(graph.get(torch.root(), "tail")).value();
  EXPECT_EQ(head.storage, tail.storage);
  EXPECT_EQ(head.file_offset, tail.file_offset + 4);
  EXPECT_FALSE(tail.contiguous());
  EXPECT_EQ(bytes_of_file(path("w.pt")).substr(head.file_offset, 4), "4567");
  std::vector<int64_t> shape;
  EXPECT_TRUE(graph.as_shape(graph.get(torch.root(), "shape"), shape));
  EXPECT_THAT(shape, ElementsAre(2, 3));
  for (const ZipRecord& record : torch.zip().records()) torch.zip().read(record, 1000);
}

TEST_F(TorchFiles, CopiesBringTheirStoragesOnce) {
  const std::string data(32, 'x');
  const TorchFile source(
      file("t.pt", make_torch_file(tensor_pickle(8, 0, kTwoByThree, kRowMajor), {data})));
  TorchFileWriter writer(path("copy.pt"), false);
  const NodeId first = writer.copy_of(source, source.root());
  EXPECT_EQ(first, writer.copy_of(source, source.root()));
  ASSERT_EQ(writer.copied().size(), 1u);
  EXPECT_EQ(writer.copied()[0].bytes, 32u);
  writer.begin(first);
  write_all(writer, writer.copied()[0].storage, data);
  writer.finish();
  EXPECT_EQ(TorchFile(path("copy.pt")).tensor(TorchFile(path("copy.pt")).root())->numel(), 6);
}

TEST_F(TorchFiles, NothingIsLeftUnderTheNameOfAnUnfinishedFile) {
  {
    TorchFileWriter writer(path("w.pt"), false);
    const int storage = writer.add_storage(ElementType::kFloat32, 24);
    writer.begin(writer.add_tensor(storage, ElementType::kFloat32, {6}));
  }
  EXPECT_TRUE(names().empty());
}

TEST_F(TorchFiles, AnExistingFileIsReplacedOnlyWhenAsked) {
  file("w.pt", "old");
  EXPECT_THAT(error_of([&] { TorchFileWriter(path("w.pt"), false); }), HasSubstr("--force"));
  EXPECT_EQ(bytes_of_file(path("w.pt")), "old");
  TorchFileWriter writer(path("w.pt"), true);
  writer.begin(writer.graph().none());
  EXPECT_EQ(bytes_of_file(path("w.pt")), "old");
  writer.finish();
  EXPECT_TRUE(TorchFile(path("w.pt")).graph().is_none(0));
}

TEST_F(TorchFiles, AFolderThatIsMissingIsToldByTheSystem) {
  EXPECT_THAT(error_of([&] { TorchFileWriter(path("no/such/w.pt"), false); }),
              HasSubstr("check the path"));
}

TEST_F(TorchFiles, ADiskWithoutSpaceIsToldBeforeAnythingIsWritten) {
  TorchFileWriter writer(path("w.pt"), false);
  const int storage = writer.add_storage(ElementType::kUInt8, 1ull << 60);
  const NodeId root = writer.add_tensor(storage, ElementType::kUInt8, {1ll << 60});
  const std::string error = error_of([&] { writer.begin(root); });
  EXPECT_THAT(error, HasSubstr("reserve the space"));
}

}  // namespace
}  // namespace zeromuon::formats
