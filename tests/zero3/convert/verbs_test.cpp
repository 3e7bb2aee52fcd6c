#include "zero3/convert/verbs.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "csrc/formats/safetensors.h"
#include "tests/csrc/formats/builders.h"
#include "tests/zero3/convert/zero3_files.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;
using formats::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

SmallCheckpoint on_ranks(int world_size) {
  SmallCheckpoint out;
  out.world_size = world_size;
  return out;
}

class Verbs : public formats::FolderTest {
 protected:
  std::string make(const std::string& name, const SmallCheckpoint& what = {}) {
    SmallWriter(what, path(name)).write();
    return path(name);
  }
  std::string rank_file(const std::string& folder, int rank, const char* kind) const {
    return concat(folder, "/step7/zero_pp_rank_", rank, "_mp_rank_00_", kind, "_states.pt");
  }
  static DiffReport difference(const std::string& a, const std::string& b) {
    return diff({{a, ""}, {b, ""}, true, {}});
  }
  static void expect_same(const std::string& a, const std::string& b) {
    const DiffReport report = difference(a, b);
    EXPECT_TRUE(report.only_in_a.empty() && report.only_in_b.empty() && report.differences.empty());
    EXPECT_GT(report.equal, 0);
  }
  ExportOptions export_options(const std::string& from, const std::string& to) {
    ExportOptions options;
    options.source.path = from;
    options.output = path(to);
    return options;
  }
  ReshardOptions reshard_options(const std::string& from, const std::string& to, int ranks) {
    ReshardOptions options;
    options.source.path = from;
    options.output = path(to);
    options.world_size = ranks;
    return options;
  }
};

TEST_F(Verbs, InspectTellsNamesRolesStatesAndTies) {
  const Checkpoint found = open_checkpoint(make("c"));
  EXPECT_EQ(found.kind, Kind::kZero3);
  EXPECT_EQ(found.world_size, 2);
  EXPECT_EQ(found.optimizer, Optimizer::kAdamW);
  EXPECT_EQ(found.facts.optimizer_step, 7);
  EXPECT_EQ(found.aliases.at("head"), "emb");
  EXPECT_EQ(found.find("w")->states.size(), 2u);
  EXPECT_EQ(found.find("frozen")->role, TensorRole::kFrozen);
  EXPECT_EQ(found.find("buffer")->role, TensorRole::kBuffer);
}

TEST_F(Verbs, ExportGivesTheSameWeightsAtEveryWorldSize) {
  for (const int ranks : {1, 2, 3, 5, 20}) {
    const std::string from = make(concat("c", ranks), on_ranks(ranks));
    const std::string to = concat("e", ranks);
    export_weights(export_options(from, to));
    const formats::SafetensorsFile file(path(to) + "/model.safetensors");
    EXPECT_EQ(file.entries().size(), 6u) << "the tied head is not written twice";
    for (const auto& entry : file.entries()) {
      if (entry.name != "v") continue;
      float values[9];
      file.file().read(entry.file_offset, values, sizeof values);
      for (int i = 0; i < 9; ++i) EXPECT_EQ(values[i], 1100 + i);
    }
  }
}

TEST_F(Verbs, ReshardAndBackKeepsEveryValueAndState) {
  const std::string from = make("c");
  for (const int ranks : {1, 3, 5, 20}) {
    const std::string there = concat("r", ranks), back = concat("b", ranks);
    ReshardOptions options = reshard_options(from, there, ranks);
    options.sub_group_size = 3;
    reshard(options);
    EXPECT_EQ(open_checkpoint(path(there)).world_size, ranks);
    expect_same(from, path(there));
    reshard(reshard_options(path(there), back, 2));
    expect_same(from, path(back));
    EXPECT_TRUE(verify({{path(there), ""}, true, {}}).problems.empty());
  }
}

TEST_F(Verbs, UniversalAndBackKeepsEveryValueAndState) {
  const std::string from = make("c");
  universal({{from, ""}, path("u/uni"), {}});
  EXPECT_EQ(formats::bytes_of_file(path("u/latest_universal")), "uni");
  expect_same(from, path("u"));
  reshard(reshard_options(path("u"), "r", 3));
  expect_same(from, path("r"));
}

TEST_F(Verbs, AdamWBecomesMuonInTheUnitsOfItsMomentum) {
  const std::string from = make("c");
  ConvertOptimizerOptions options;
  options.source.path = from;
  options.to = "ZeroMuon";
  options.output = path("m");
  EXPECT_THROW(convert_optimizer(options), ValueError) << "roles are needed";
  options.roles = {{"emb", "adamw"}, {"w", "muon"}, {"v", "muon"}, {"bias", "adamw"}};
  convert_optimizer(options);
  const Checkpoint found = open_checkpoint(path("m"));
  EXPECT_EQ(found.optimizer, Optimizer::kZeroMuon);
  EXPECT_EQ(found.momentum_kind, "ema");
  const NamedTensor& w = *found.find("w");
  EXPECT_EQ(w.role, TensorRole::kMuon);
  ASSERT_EQ(w.states.size(), 1u);
  const ByteRange& range = w.states.at("exp_avg").ranges.at(0);
  float value = 0;
  range.file->read(range.offset + 4, &value, sizeof value);
  EXPECT_FLOAT_EQ(value, static_cast<float>(0.5 * 101 / (1 - std::pow(0.9, 7))));
  options = {};
  options.source.path = path("m");
  options.to = "ZeroMuon";
  options.momentum_kind = "heavy_ball";
  options.output = path("h");
  convert_optimizer(options);
  const DiffReport report = difference(path("m"), path("h"));
  ASSERT_EQ(report.differences.size(), 2u);
  EXPECT_NEAR(report.differences[0].max_rel, 0.95, 1e-6);
}

TEST_F(Verbs, VerifyFindsNaNButNotInPadding) {
  EXPECT_TRUE(verify({{make("good", on_ranks(3)), ""}, true, {}}).problems.empty());
  SmallCheckpoint bad;
  bad.nan_in_weights = true;
  const VerifyReport report = verify({{make("bad", bad), ""}, true, {}});
  ASSERT_FALSE(report.problems.empty());
  EXPECT_THAT(report.problems[0].text(), HasSubstr("NaN"));
}

TEST_F(Verbs, VerifyFindsAFlippedByte) {
  const std::string from = make("c");
  const std::string name = rank_file(from, 1, "optim");
  std::string bytes = formats::bytes_of_file(name);
  const Checkpoint found = open_checkpoint(from);
  const auto at = found.find("w")->value.ranges.at(1).offset;
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  std::ofstream(name, std::ios::binary) << bytes;
  const VerifyReport report = verify({{from, ""}, true, {}});
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_THAT(report.problems[0].text(), HasSubstr("CRC"));
}

TEST_F(Verbs, AMissingRankIsNamed) {
  const std::string from = make("c", on_ranks(3));
  fs::remove(rank_file(from, 1, "optim"));
  EXPECT_THAT(error_of([&] { open_checkpoint(from); }), HasSubstr("rank 1"));
  fs::remove(rank_file(from, 2, "optim"));
  EXPECT_THAT(error_of([&] { open_checkpoint(from); }), HasSubstr("3 ranks"));
}

TEST_F(Verbs, MixedCheckpointsAreRefused) {
  const std::string from = make("c");
  SmallCheckpoint later;
  later.steps = 8;
  fs::copy_file(rank_file(make("d", later), 1, "model"), rank_file(from, 1, "model"),
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(error_of([&] { open_checkpoint(from); }), HasSubstr("global_steps"));
}

TEST_F(Verbs, EveryTruncationOfAFileIsAnError) {
  const std::string from = make("c"), name = rank_file(from, 0, "optim");
  const std::string whole = formats::bytes_of_file(name);
  for (size_t bytes = 0; bytes < whole.size(); bytes += 13) {
    std::ofstream(name, std::ios::binary) << whole.substr(0, bytes);
    EXPECT_THAT(error_of([&] { open_checkpoint(from); }), HasSubstr("rank_0"));
  }
}

TEST_F(Verbs, AnExistingOutputIsReplacedOnlyWhenAsked) {
  const std::string from = make("c");
  ExportOptions options = export_options(from, "e");
  export_weights(options);
  EXPECT_THAT(error_of([&] { export_weights(options); }), HasSubstr("--force"));
  options.run.force = true;
  EXPECT_EQ(export_weights(options).tensors, 6);
}

TEST_F(Verbs, ACancelledRunLeavesNoFinishedNameAndIsResumed) {
  const std::string from = make("c");
  ReshardOptions options = reshard_options(from, "r", 3);
  options.run.threads = 1;
  options.run.progress = [this](const Progress&) {
    if (!fs::is_empty(path("r/step7")))
      throw std::runtime_error("cancelled");  // not while it checks
  };
  EXPECT_THROW(reshard(options), std::runtime_error);
  for (const auto& entry : fs::recursive_directory_iterator(path("r"))) {
    EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr(".partial")));
  }
  options.run.progress = nullptr;
  options.run.resume = true;
  reshard(options);
  expect_same(from, path("r"));
  EXPECT_FALSE(fs::exists(path("r/step7/.zeromuon-journal")));
}

TEST_F(Verbs, ResumeWithOtherOptionsIsRefused) {
  const std::string from = make("c");
  fs::create_directories(path("e"));
  file("e/.zeromuon-journal", "zeromuon ckpt journal 1 123\n");
  ExportOptions options = export_options(from, "e");
  options.run.resume = true;
  EXPECT_THAT(error_of([&] { export_weights(options); }), HasSubstr("other options"));
}

TEST_F(Verbs, AVerbThatDoesNotGoWithTheInputListsThoseThatDo) {
  const std::string from = make("c");
  export_weights(export_options(from, "e"));
  try {
    reshard(reshard_options(path("e"), "r", 2));
    FAIL() << "expected an error";
  } catch (const ValueError& error) {
    EXPECT_THAT(error.what(), HasSubstr("goes with inspect, verify, diff, export"));
  }
}

TEST_F(Verbs, DtypesGoByPatternAndLeaveFrozenAndBuffersAlone) {
  ExportOptions options = export_options(make("c"), "e");
  options.dtype = "bfloat16";
  options.dtype_patterns = {{"v*", "float16"}};
  options.exclude = {"bias"};
  export_weights(options);
  const Checkpoint found = open_checkpoint(path("e"));
  EXPECT_EQ(found.find("w")->value.type, formats::ElementType::kBFloat16);
  EXPECT_EQ(found.find("v")->value.type, formats::ElementType::kFloat16);
  EXPECT_EQ(found.find("frozen")->value.type, formats::ElementType::kFloat32);
  EXPECT_EQ(found.find("bias"), nullptr);
  EXPECT_EQ(found.aliases.at("head"), "emb");
}

TEST_F(Verbs, TorchAndShardedExportsAgree) {
  const std::string from = make("c");
  ExportOptions torch = export_options(from, "w.pt"), sharded = export_options(from, "s");
  torch.format = "torch";
  sharded.max_shard_bytes = 40;
  export_weights(torch);
  EXPECT_GT(export_weights(sharded).files.size(), 3u);
  expect_same(path("w.pt"), path("s"));
}

TEST_F(Verbs, OptionsOutOfRangeAreRefused) {
  const std::string from = make("c");
  EXPECT_THROW(reshard(reshard_options(from, "r", 0)), ValueError);
  ExportOptions options = export_options(from, "e");
  options.dtype = "int8";
  EXPECT_THROW(export_weights(options), ValueError);
  options.dtype = "";
  options.run.max_memory_bytes = 100;
  EXPECT_THROW(export_weights(options), ValueError);
  ConvertOptimizerOptions converted;
  converted.source.path = from;
  converted.output = path("m");
  converted.to = "ZeroMuon";
  converted.roles = {{"emb", "adamw"}, {"w", "muon"}, {"v", "muon"}, {"bias", "adamw"}};
  for (const auto& [name, value] : std::vector<std::pair<const char*, double>>{
           {"lr", -3}, {"adam_lr", INFINITY}, {"eps", NAN}, {"momentum", 1}, {"beta2", 1}}) {
    converted.numbers = {{name, value}};
    EXPECT_THROW(convert_optimizer(converted), ValueError) << name;
  }
  EXPECT_FALSE(fs::exists(path("m")));
  EXPECT_THAT(error_of([&] { open_checkpoint(path("absent")); }), HasSubstr("check the path"));
  EXPECT_THAT(error_of([&] { open_checkpoint(from, "step9"); }), HasSubstr("--tag"));
}

}  // namespace
}  // namespace zeromuon::convert
