// What verbs refuse to write over, beside or from.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/zero3/convert/broken_files.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;
using formats::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Outputs : public SmallFiles {
 protected:
  static ReshardOptions reshard_options(const std::string& from, const std::string& to, int ranks) {
    ReshardOptions options;
    options.source.path = from;
    options.output = to;
    options.world_size = ranks;
    return options;
  }
  static ExportOptions export_options(const std::string& from, const std::string& to) {
    ExportOptions options;
    options.source.path = from;
    options.output = to;
    return options;
  }
  static void flip(const std::string& file, uint64_t at) {
    std::string bytes = formats::bytes_of_file(file);
    bytes.at(at) = static_cast<char>(bytes.at(at) ^ 1);
    std::ofstream(file, std::ios::binary) << bytes;
  }
  static void flip(const TensorSource& source) {
    const ByteRange& range = source.ranges.at(0);
    flip(range.file->path(), range.offset);
  }
};

TEST_F(Outputs, ACheckpointIsNeverWrittenOverItselfAlsoWithForce) {
  const std::string from = make("c");
  const auto before = contents(from);
  ReshardOptions options = reshard_options(from, from, 2);
  options.run.force = true;
  EXPECT_THAT(error_of([&] { reshard(options); }),
              AllOf(HasSubstr("source"), HasSubstr("--new-tag")));
  fs::create_directory_symlink(from, path("link"));
  options.output = path("link");
  EXPECT_THAT(error_of([&] { reshard(options); }), HasSubstr("source"));
  EXPECT_EQ(contents(from), before);
  options.tag = "other";
  options.output = from;
  reshard(options);
  EXPECT_EQ(contents(from).at("latest"), "other");

  export_weights(export_options(path("c"), path("e")));
  ExportOptions again = export_options(path("e"), path("e"));
  again.run.force = true;
  again.dtype = "bfloat16";
  EXPECT_THAT(error_of([&] { export_weights(again); }), HasSubstr("source"));
}

TEST_F(Outputs, FlippedBitsAreNotCopiedUnderANewCRC) {
  const std::string from = make("c");
  const Checkpoint found = open_checkpoint(from);
  flip(found.find("w")->states.at("exp_avg"));
  export_weights(export_options(from, path("e")));  // which reads no state
  EXPECT_THAT(error_of([&] { reshard(reshard_options(from, path("r"), 3)); }), HasSubstr("CRC"));
  EXPECT_THAT(error_of([&] { universal({{from, ""}, path("u"), {}}); }), HasSubstr("CRC"));
  ConvertOptimizerOptions options;
  options.source.path = from;
  options.to = "ZeroMuon";
  options.output = path("m");
  options.roles = {{"emb", "adamw"}, {"w", "muon"}, {"v", "muon"}, {"bias", "adamw"}};
  EXPECT_THAT(error_of([&] { convert_optimizer(options); }), HasSubstr("CRC"));
  flip(found.find("v")->value);
  EXPECT_THAT(error_of([&] { export_weights(export_options(from, path("f"))); }), HasSubstr("CRC"));
  for (const char* name : {"r", "u", "m", "f"}) EXPECT_TRUE(contents(path(name)).empty()) << name;
}

TEST_F(Outputs, AnExportBesideAnotherModelNeedsForceWhichRemovesIt) {
  const std::string from = make("c"), to = path("e");
  const auto options = [&](const char* format, int64_t shard_bytes, bool force) {
    ExportOptions out = export_options(from, to);
    out.format = format;
    out.max_shard_bytes = shard_bytes;
    out.run.force = force;
    return out;
  };
  export_weights(options("safetensors", 0, false));
  for (const auto& [format, shard_bytes] : {std::pair{"safetensors", 40}, {"torch", 0}}) {
    EXPECT_THAT(error_of([&] { export_weights(options(format, shard_bytes, false)); }),
                AllOf(HasSubstr("model.safetensors"), HasSubstr("--force")));
  }
  export_weights(options("torch", 0, true));
  EXPECT_FALSE(fs::exists(to + "/model.safetensors"));
  EXPECT_THAT(error_of([&] { export_weights(options("safetensors", 40, false)); }),
              HasSubstr("pytorch_model.bin"));
  export_weights(options("safetensors", 40, true));
  EXPECT_FALSE(fs::exists(to + "/pytorch_model.bin"));
  EXPECT_EQ(open_checkpoint(to).tensors.size(), 6u);
}

TEST_F(Outputs, AFolderHoldsOneKindOfCheckpoint) {
  const std::string from = make("c"), other = make("d");
  for (const std::string& to : {other, other + "/step7"}) {
    EXPECT_THAT(error_of([&] { universal({{from, ""}, to, {}}); }), HasSubstr("another kind"));
  }
  universal({{from, ""}, path("u"), {}});
  EXPECT_THAT(error_of([&] { reshard(reshard_options(from, path("u"), 2)); }),
              HasSubstr("another kind"));
}

TEST_F(Outputs, AFileOfOneRankIsNoModel) {
  const std::string from = make("c");
  for (const char* kind : {"model", "optim"}) {
    EXPECT_THAT(error_of([&] { open_checkpoint(rank_file(from, 0, kind)); }),
                AllOf(HasSubstr("one rank's part"), HasSubstr("step7")));
  }
}

TEST_F(Outputs, ValuesBeyondFloat16AreRefusedByName) {
  SmallCheckpoint what;
  what.groups[0].push_back({"large", {400, 300}});  // element i is 200 + i
  const std::string from = make("c", what);
  ExportOptions options = export_options(from, path("e"));
  options.dtype = "float16";
  const std::string error = error_of([&] { export_weights(options); });
  EXPECT_THAT(error, AllOf(HasSubstr("\"large\""), HasSubstr("float16"), HasSubstr("bfloat16")));
  EXPECT_TRUE(contents(path("e")).empty());
  options.dtype_patterns = {{"large", "bfloat16"}};
  export_weights(options);
  EXPECT_TRUE(verify({{path("e"), ""}, true, {}}).problems.empty());
}

TEST_F(Outputs, VerifyFindsWhatIsNotFinishedAndFilesUnderAnotherRanksName) {
  const std::string from = make("c");
  const auto problems = [](const std::string& of) {
    std::string text;
    for (const auto& problem : verify({{of, ""}, true, {}}).problems) text += problem.text() + "\n";
    return text;
  };
  EXPECT_EQ(problems(from), "");
  file("c/step7/.zeromuon-journal", "zeromuon ckpt journal 1 123\n");
  EXPECT_THAT(problems(from), HasSubstr("--resume"));
  fs::remove(from + "/step7/.zeromuon-journal");
  fs::copy_file(rank_file(from, 0, "optim"), rank_file(from, 1, "optim"),
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(problems(from), HasSubstr("written as that of rank 0"));
}

TEST_F(Outputs, AMissingShardWithoutAnIndexIsNamed) {
  ExportOptions options = export_options(make("c"), path("e"));
  options.max_shard_bytes = 40;
  export_weights(options);
  fs::remove(path("e/model.safetensors.index.json"));
  EXPECT_EQ(open_checkpoint(path("e")).tensors.size(), 6u);
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(path("e"))) shards.push_back(entry.path());
  fs::remove(shards.at(1));
  EXPECT_THAT(error_of([&] { open_checkpoint(path("e")); }),
              AllOf(HasSubstr(concat(shards.size(), " shards")), HasSubstr("incomplete")));
}

}  // namespace
}  // namespace zeromuon::convert
