// Broken and hostile checkpoints: an error that names the file and what to do, or a checkpoint that
// says something else; never a crash, an internal error, or more memory and time than the files ask
// for.
#include <gmock/gmock.h>

#include "tests/zero3/convert/broken_files.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;
using formats::error_of;
using formats::kNoNode;
using formats::NodeId;
using formats::NodeKind;
using formats::PickleGraph;
using formats::TorchFile;
using ::testing::HasSubstr;

class Hostile : public SmallFiles {
 protected:
  std::string refusal(const std::string& from) {
    return error_of([&] { open_checkpoint(from); });
  }
  VerifyReport verified(const std::string& from) {
    VerifyOptions options;
    options.source.path = from;
    options.run.threads = 1;
    return verify(options);
  }
  void export_to(const std::string& from, const std::string& to) {
    ExportOptions options;
    options.source.path = from;
    options.output = path(to);
    export_weights(options);
  }
  std::string make_universal(const std::string& from) {
    universal({{from, ""}, path("u/uni"), {}});
    return path("u/uni");
  }
};

// The file cut at the begin and end of each record, a byte before and a byte after.
std::vector<uint64_t> boundaries_of(const std::string& path) {
  const TorchFile file(path);
  std::vector<uint64_t> out;
  for (const formats::ZipRecord& record : file.zip().records()) {
    for (const uint64_t at : {record.data_offset, record.data_offset + record.bytes}) {
      out.insert(out.end(), {at - 1, at, at + 1});
    }
  }
  const uint64_t size = file.file().size();
  out.insert(out.end(), {0, 1, size - 1, size - 22, size - 42, size - 98});
  return out;
}

TEST_F(Hostile, AFileCutAtAnyRecordIsNamed) {
  const std::string from = make("c");
  for (const char* kind : {"model", "optim"}) {
    for (const int rank : {0, 1}) {
      const std::string name = rank_file(from, rank, kind), whole = formats::bytes_of_file(name);
      for (const uint64_t bytes : boundaries_of(name)) {
        std::ofstream(name, std::ios::binary) << whole.substr(0, bytes);
        EXPECT_THAT(refusal(from), HasSubstr(fs::path(name).filename().string())) << bytes;
        EXPECT_EQ(verified(from).problems.size(), 1u);
        EXPECT_THROW(export_to(from, "out"), formats::FormatError);
        EXPECT_FALSE(fs::exists(path("out")));
      }
      std::ofstream(name, std::ios::binary) << whole;
    }
  }
}

TEST_F(Hostile, AFlippedByteIsFoundByVerifyOrChangesNothing) {
  const std::string from = make("c"), intact = make("intact");
  for (const char* kind : {"model", "optim"}) {
    const std::string name = rank_file(from, 1, kind), whole = formats::bytes_of_file(name);
    for (size_t at = 0; at < whole.size(); at += 5) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      std::ofstream(name, std::ios::binary) << damaged;
      if (!verified(from).problems.empty()) continue;
      RunOptions one_thread;
      one_thread.threads = 1;
      const DiffReport report = diff({{from, ""}, {intact, ""}, true, one_thread});
      EXPECT_TRUE(report.differences.empty() && report.only_in_a.empty()) << kind << " byte " << at;
    }
    std::ofstream(name, std::ios::binary) << whole;
  }
}

// Opens what is in `from`, and uses all of it; FormatError and ValueError are answers.
void use(const std::string& from, const std::string& to, bool writes, const std::string& what) {
  try {
    VerifyOptions options;
    options.source.path = from;
    options.check_crc = false;
    options.run.threads = 1;
    if (!verify(options).problems.empty() || !writes) return;
    ReshardOptions again;
    again.source.path = from;
    again.output = to;
    again.world_size = 1;
    again.run.threads = 1;
    reshard(again);
    EXPECT_EQ(open_checkpoint(to).world_size, 1) << what;
  } catch (const ValueError&) {
  } catch (const std::exception& error) {
    ADD_FAILURE() << what << ": " << error.what();
  }
  for (const auto& [name, bytes] : contents(to)) {
    EXPECT_THAT(name, ::testing::Not(HasSubstr(".partial"))) << what;
  }
  fs::remove_all(to);
}

std::vector<NodeId> replacements(PickleGraph& graph) {
  return {graph.none(),
          graph.integer(-1),
          graph.integer(int64_t{1} << 62),
          graph.real(1e300),
          graph.string(".."),
          graph.sequence(NodeKind::kList),
          graph.sequence(NodeKind::kTuple, {graph.integer(INT64_MAX), graph.integer(2)}),
          graph.dict()};
}

TEST_F(Hostile, AnyValueOfAPickleMayBeAnyOther) {
  const std::string from = make("c");
  for (const char* kind : {"model", "optim"}) {
    const std::string name = rank_file(from, 0, kind), whole = formats::bytes_of_file(name);
    const TorchFile file(formats::FolderTest::file("source.pt", whole));
    PickleGraph probe;
    const size_t choices = replacements(probe).size();
    // Half of the replacements for each node, the others for the next.
    for (NodeId node = 1; node < file.graph().size(); ++node) {
      for (size_t choice = node % 2; choice < choices; choice += 2) {
        PickleGraph graph;
        formats::PickleCopier copier(file.graph(), graph);
        copier.record(node, replacements(graph)[choice]);
        const NodeId root = copier.copy(file.root());
        std::string pickle;
        try {
          pickle = pickle_of(graph, root);
        } catch (const formats::FormatError&) {
          continue;  // a value that Python could not hold either
        }
        std::ofstream(name, std::ios::binary) << with_pickle(file, pickle);
        const bool writes =
            (node / 2 + choice / 2) % 4 == 0;  // they sync to disk, which takes its time
        use(from, path("out"), writes, concat(kind, " node ", node, " choice ", choice));
      }
    }
    std::ofstream(name, std::ios::binary) << whole;
  }
}

TEST_F(Hostile, ClaimedSizesAreRefusedBeforeMemoryIsTaken) {
  const std::vector<std::vector<int64_t>> shapes = {
      {INT64_MAX}, {int64_t{1} << 62}, {int64_t{1} << 55, 2}, {1 << 30, 1 << 30, 1 << 30}, {1000}};
  for (const std::vector<int64_t>& shape : shapes) {
    for (const char* key : {"param_shapes", "frozen_param_shapes"}) {
      const std::string from = make("c");
      for (const int rank : {0, 1}) {
        edit(rank_file(from, rank, "model"), [&](PickleGraph& g, NodeId root) {
          const NodeId all = g.get(root, key);
          const bool frozen = std::string(key) == "frozen_param_shapes";
          g.set(frozen ? all : g.items(all)[0], frozen ? "frozen" : "w", g.size_of_shape(shape));
        });
      }
      const ChildOutcome child = in_child([&] { return refusal(from); });
      EXPECT_THAT(child.text, HasSubstr("_states.pt")) << key;
      EXPECT_LT(child.peak_bytes, 512 << 20) << key;
    }
  }
}

TEST_F(Hostile, ClaimedRanksAreComparedWithTheFiles) {
  for (const int64_t ranks : {int64_t{0}, int64_t{-5}, int64_t{3}, int64_t{1} << 40}) {
    const std::string from = make("c");
    edit(rank_file(from, 0, "optim"), [&](PickleGraph& g, NodeId root) {
      g.set(g.get(root, "optimizer_state_dict"), "partition_count", g.integer(ranks));
    });
    EXPECT_THAT(refusal(from), HasSubstr("expected")) << ranks;
  }
}

TEST_F(Hostile, ViewsThatRepeatElementsWithoutEndAreRefused) {
  const std::string to = make_universal(make("c"));
  constexpr int64_t kNumel = int64_t{1} << 45;
  for (const int rank : {0, 1}) {
    const std::string name = concat(to, "/zero_pp_rank_", rank, "_mp_rank_00_model_states.pt");
    edit(name, [&](PickleGraph& g, NodeId root) {
      g.set(g.items(g.get(root, "param_shapes"))[0], "w", g.size_of_shape({kNumel}));
    });
  }
  for (const char* part : {"fp32", "exp_avg", "exp_avg_sq"}) {
    formats::TorchFileWriter writer(concat(to, "/zero/w/", part, ".pt"), true);
    const int storage = writer.add_storage(formats::ElementType::kFloat32, 4);
    writer.begin(
        writer.add_tensor(storage, formats::ElementType::kFloat32, {kNumel}, 0, {0}, false));
    writer.write(storage, 0, "\0\0\0\0", 4);
    writer.set_crc(storage, formats::crc32(0, "\0\0\0\0", 4));
    writer.finish();
  }
  EXPECT_THAT(refusal(to), HasSubstr("without end"));
}

TEST_F(Hostile, NamesThatLeaveTheFolderAreWrittenNowhere) {
  for (const std::string& name : std::vector<std::string>{"../evil", "/tmp/evil", "..", ".", "",
                                                          "a/b", std::string("a\0b", 3), "a\nb"}) {
    SmallCheckpoint what;
    what.groups[0][1].name = name;
    const std::string from = make("c", what);
    const auto before = contents(folder_.string());
    EXPECT_THAT(error_of([&] { make_universal(from); }), HasSubstr("file names")) << name;
    EXPECT_EQ(contents(folder_.string()), before) << name;
    export_to(from, "e");  // names inside a file may be any
    EXPECT_NE(open_checkpoint(path("e")).find(name), nullptr);
    fs::remove_all(path("e"));
  }
}

TEST_F(Hostile, ANameThatIsNoUtf8IsAProblemOfItsFile) {
  SmallCheckpoint what;
  what.groups[0][1].name = "w\xff";
  const std::string from = make("c", what), file = rank_file(from, 0, "model");
  EXPECT_THAT(refusal(from), HasSubstr(file + ": expected the name of a tensor in UTF-8"));
  ASSERT_EQ(verified(from).problems.size(), 1u);
  EXPECT_EQ(verified(from).problems[0].file, file);
  EXPECT_THROW(export_to(from, "e"), formats::FormatError);
  EXPECT_TRUE(contents(path("e")).empty());
}

TEST_F(Hostile, TagsThatLeaveTheFolderAreRefused) {
  const std::string from = make("c");
  for (const std::string& tag :
       std::vector<std::string>{"../c/step7", "/etc", "..", "", " ", std::string("a\0b", 3)}) {
    file("c/latest", tag);
    EXPECT_THAT(refusal(from), HasSubstr("latest")) << tag;
  }
  file("c/latest", "step7");
  EXPECT_THROW(open_checkpoint(from, "../c"), ValueError);
  EXPECT_THROW(reshard({{from, ""}, path("r"), 2, 0, "../up", {}}), ValueError);
  EXPECT_FALSE(fs::exists(path("up")) || fs::exists(path("r")));
  file("latest_universal", "../" + folder_.filename().string());
  EXPECT_THAT(refusal(folder_.string()), HasSubstr("none of these"));
}

// An object of a class, with fields, as DCP has them.
NodeId object(PickleGraph& g, const char* name, NodeId state) {
  formats::Call call;
  call.callable = g.global("torch.distributed.checkpoint.metadata", name);
  call.arguments = g.sequence(NodeKind::kTuple);
  call.state = state;
  return g.call(std::move(call));
}

TEST_F(Hostile, AChunkOfDcpOutsideItsFolderIsRefused) {
  file("secret", "secret");
  for (const char* name : {"../secret", "/etc/passwd", "..", ""}) {
    PickleGraph g;
    const NodeId index = g.dict(), info = g.dict(), data = g.dict(), fields = g.dict();
    g.set(index, "fqn", g.string("w"));
    g.set(info, "relative_path", g.string(name));
    g.set(info, "offset", g.integer(0));
    g.set(info, "length", g.integer(6));
    const NodeId key = object(g, "MetadataIndex", index), value = object(g, "_StorageInfo", info);
    g.mutable_dict_items(data).emplace_back(key, value);
    g.set(fields, "storage_data", data);
    g.set(fields, "state_dict_metadata", g.dict());
    formats::make_folders(path("dcp"));
    file("dcp/.metadata", pickle_of(g, object(g, "Metadata", fields)));
    EXPECT_THAT(refusal(path("dcp")), HasSubstr("file of the folder")) << name;
  }
}

TEST_F(Hostile, DuplicateNamesAreRefused) {
  SmallCheckpoint twice;
  twice.groups[1][1].name = "w";
  EXPECT_THAT(refusal(make("twice", twice)), HasSubstr("\"w\" twice"));
  SmallCheckpoint frozen;
  frozen.groups[1][1].name = "frozen";
  EXPECT_THAT(refusal(make("frozen", frozen)), HasSubstr("\"frozen\" twice"));
  const std::string from = make("c");
  export_to(from, "e");
  fs::copy_file(path("e/model.safetensors"), path("e/model-00001-of-00002.safetensors"));
  fs::rename(path("e/model.safetensors"), path("e/model-00002-of-00002.safetensors"));
  EXPECT_THAT(refusal(path("e")), HasSubstr("two places"));
}

TEST_F(Hostile, FilesOfSeveralCheckpointsAreNotMixed) {
  const auto swapped = [&](const SmallCheckpoint& other, const char* kind) {
    const std::string from = make("c");
    fs::copy_file(rank_file(make("d", other), 1, kind), rank_file(from, 1, kind),
                  fs::copy_options::overwrite_existing);
    return refusal(from);
  };
  SmallCheckpoint later, other;
  later.steps = 8;
  other.groups[1][1].shape = {2, 3};
  EXPECT_THAT(swapped(later, "optim"), HasSubstr("optimizer step 7, as on rank 0, got 8"));
  EXPECT_THAT(swapped(later, "model"), HasSubstr("global_steps 7, as on rank 0, got 8"));
  EXPECT_THAT(swapped(other, "model"), HasSubstr("the parameters of rank 0"));
  EXPECT_THAT(swapped(other, "optim"), HasSubstr("restore this rank's"));
}

TEST_F(Hostile, FilesOfAnotherWorldSizeOrOfAnotherNameAreToldApart) {
  SmallCheckpoint three;
  three.world_size = 3;
  const std::string from = make("c"), larger = make("d", three);
  for (const char* kind : {"model", "optim"}) {
    fs::copy_file(rank_file(larger, 2, kind), rank_file(from, 2, kind));
  }
  EXPECT_THAT(refusal(from), HasSubstr("another world size"));
  for (const char* kind : {"model", "optim"}) fs::remove(rank_file(from, 2, kind));
  fs::copy_file(rank_file(from, 1, "optim"),
                path("c/step7/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"));
  EXPECT_THAT(refusal(from), HasSubstr("of other names"));
}

TEST_F(Hostile, ABillionLaughsInTheClientStateStaysSmall) {
  const std::string from = make("c");
  for (const int rank : {0, 1}) {
    edit(rank_file(from, rank, "model"), [](PickleGraph& g, NodeId root) {
      NodeId list = g.string("laugh");
      for (int i = 0; i < 40; ++i) {
        list = g.sequence(NodeKind::kList, std::vector<NodeId>(10, list));
      }
      g.set(root, "client_state", list);
      g.set(root, "ds_version", list);
    });
  }
  const ChildOutcome child = in_child([&] {
    reshard({{from, ""}, path("r"), 3, 0, "", {}});
    return std::string("done");
  });
  EXPECT_EQ(child.text, "done");
  EXPECT_LT(child.peak_bytes, 512 << 20);
  for (const auto& [name, bytes] : contents(path("r"))) EXPECT_LT(bytes.size(), 20000u) << name;
}

TEST_F(Hostile, ManyNamesTakeTimeInProportion) {
  constexpr int kNames = 100'000;
  const std::string from = make("c");
  for (const int rank : {0, 1}) {
    edit(rank_file(from, rank, "model"), [](PickleGraph& g, NodeId root) {
      auto many = [&](const char* key, const std::string& prefix, NodeId value) {
        for (int i = 0; i < kNames; ++i) {
          const NodeId name = g.string(prefix + std::to_string(i));
          g.mutable_dict_items(g.get(root, key)).emplace_back(name, value);
        }
      };
      const NodeId fragment = g.get(g.get(root, "frozen_param_fragments"), "frozen");
      many("frozen_param_shapes", "frozen.", g.size_of_shape({7}));
      many("frozen_param_fragments", "frozen.", fragment);
      many("shared_params", "tied.", g.string("emb"));
    });
  }
  ExportOptions options;
  options.source.path = from;
  options.output = path("e");
  options.exclude = {"emb", "frozen*", "head"};
  const OutputReport report = export_weights(options);
  EXPECT_EQ(report.tensors, 5);
  EXPECT_EQ(report.aliases.size(), size_t{kNames} - 1);
}

}  // namespace
}  // namespace zeromuon::convert
