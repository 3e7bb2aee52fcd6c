// Runs that cannot finish: full disks, folders that may not be written, errors, cancellation and
// death on the way. Nothing half-written gets a final name, and --resume ends at the same bytes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>

#include <csignal>
#include <thread>

#include "csrc/formats/folder_lock.h"
#include "csrc/formats/output_file.h"
#include "tests/zero3/convert/broken_files.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;
using formats::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kJournal = ".zeromuon-journal";

struct Verb {
  const char* name;
  OutputReport (*run)(const std::string& from, const std::string& to, const RunOptions& run);
  const char* folder;  // of the output that it writes into
};

OutputReport run_export(const std::string& from, const std::string& to, const RunOptions& run) {
  ExportOptions options;
  options.source.path = from;
  options.output = to;
  options.max_shard_bytes = 16'000;
  options.run = run;
  return export_weights(options);
}

OutputReport run_torch(const std::string& from, const std::string& to, const RunOptions& run) {
  ExportOptions options;
  options.source.path = from;
  options.output = to;
  options.format = "torch";
  options.run = run;
  return export_weights(options);
}

OutputReport run_reshard(const std::string& from, const std::string& to, const RunOptions& run) {
  return reshard({{from, ""}, to, 3, 0, "", run});
}

OutputReport run_universal(const std::string& from, const std::string& to, const RunOptions& run) {
  return universal({{from, ""}, to + "/uni", run});
}

OutputReport run_convert(const std::string& from, const std::string& to, const RunOptions& run) {
  ConvertOptimizerOptions options;
  options.source.path = from;
  options.output = to;
  options.to = "ZeroMuon";
  options.roles = {
      {"emb", "adamw"}, {"w", "muon"}, {"big", "muon"}, {"bias", "adamw"}, {"v", "muon"}};
  options.run = run;
  return convert_optimizer(options);
}

constexpr Verb kVerbs[] = {{"export", run_export, ""},
                           {"torch", run_torch, ""},
                           {"reshard", run_reshard, "/step7"},
                           {"universal", run_universal, "/uni"},
                           {"convert", run_convert, "/step7"}};

class InterruptedRun : public SmallFiles, public ::testing::WithParamInterface<Verb> {
 protected:
  // With a matrix of 16 KiB: its files are larger than the others.
  std::string make_source() const {
    SmallCheckpoint what;
    what.groups[1].push_back({"big", {64, 64}});
    return make("c", what);
  }
  OutputReport run(const std::string& to, bool resume = false) const {
    RunOptions options;
    options.threads = 1;
    options.resume = resume;
    return GetParam().run(path("c"), to, options);
  }
  std::string failure(const std::string& to) const {
    return error_of([&] { run(to); });
  }
  // What the run gives when nothing is in its way.
  std::map<std::string, std::string> expected() const {
    run(path("reference"));
    return contents(path("reference"));
  }
  void expect_resumed(const std::string& to,
                      const std::map<std::string, std::string>& expected) const {
    run(to, true);
    EXPECT_EQ(contents(to), expected);
  }
};

// What is wrong in the folder of an unfinished run: files that differ from those of a whole run,
// and temporary ones. The journal is right where it is.
std::string leftovers(const std::string& folder,
                      const std::map<std::string, std::string>& expected) {
  std::string out;
  for (const auto& [name, bytes] : contents(folder)) {
    if (name.ends_with(kJournal)) continue;
    const auto whole = expected.find(name);
    if (whole == expected.end() || whole->second != bytes) out += name + " ";
  }
  return out;
}

// A file system of `options` over `folder`, seen by this process only. False where that is not
// allowed.
bool mount_over(const std::string& folder, unsigned long flags, const char* options) {
  const bool root = ::geteuid() == 0;
  if (::unshare(CLONE_NEWNS | (root ? 0 : CLONE_NEWUSER)) != 0) return false;
  if (root && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  return ::mount("zeromuon-test", folder.c_str(), "tmpfs", flags, options) == 0;
}

TEST_P(InterruptedRun, AFullDiskIsToldAndLeavesNothingHalf) {
  make_source();
  const auto whole = expected();
  fs::create_directories(path("out"));
  const ChildOutcome child = in_child([&]() -> std::string {
    if (!mount_over(path("out"), 0, "size=16k")) return "not allowed";
    return failure(path("out")) + " [" + leftovers(path("out"), whole) + "]";
  });
  if (child.text == "not allowed") GTEST_SKIP() << "this user may not mount a small file system";
  EXPECT_THAT(child.text, AllOf(HasSubstr("/out/"), HasSubstr("make room"), HasSubstr("[]")));
}

TEST_P(InterruptedRun, ALimitOfFileSizesIsToldAndTheRunIsResumedWithoutIt) {
  make_source();
  const auto whole = expected();
  const ChildOutcome child = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{8192, 8192};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    return failure(path("out"));
  });
  EXPECT_THAT(child.text, AllOf(HasSubstr("/out/"), HasSubstr("ulimit -f")));
  EXPECT_EQ(leftovers(path("out"), whole), "");
  expect_resumed(path("out"), whole);
}

TEST_P(InterruptedRun, AFolderThatMayNotBeWrittenIsTold) {
  make_source();
  fs::create_directories(path("locked"));
  fs::permissions(path("locked"), fs::perms::owner_read | fs::perms::owner_exec |
                                      fs::perms::others_read | fs::perms::others_exec);
  const ChildOutcome child = in_child([&]() -> std::string {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return "still root";
    return failure(path("locked/out"));
  });
  EXPECT_THAT(child.text, AllOf(HasSubstr("/locked/out"), HasSubstr("this user may use")));
  EXPECT_TRUE(contents(path("locked")).empty());
  fs::permissions(path("locked"), fs::perms::owner_all);
}

TEST_P(InterruptedRun, AFileSystemThatIsReadOnlyIsTold) {
  make_source();
  fs::create_directories(path("out"));
  const ChildOutcome child = in_child([&]() -> std::string {
    if (!mount_over(path("out"), MS_RDONLY, "size=1m")) return "not allowed";
    return failure(path("out"));
  });
  if (child.text == "not allowed") GTEST_SKIP() << "this user may not mount a file system";
  EXPECT_THAT(child.text, AllOf(HasSubstr("/out"), HasSubstr("this user may use")));
}

TEST_P(InterruptedRun, AFileInPlaceOfTheFolderIsTold) {
  make_source();
  file("taken", "mine");
  EXPECT_THAT(failure(path("taken/out")), HasSubstr("choose another path"));
  EXPECT_EQ(formats::bytes_of_file(path("taken")), "mine");
}

TEST_P(InterruptedRun, AnErrorOnTheWayKeepsWhatIsWholeForResume) {
  make_source();
  const auto whole = expected();
  const OutputReport report = run(path("probe"));
  // The last file cannot be made: a folder has its temporary name.
  const std::string last = fs::relative(report.files.back(), path("probe")).string();
  fs::create_directories(path("out/" + last + ".partial"));
  EXPECT_THAT(failure(path("out")), HasSubstr(last));
  EXPECT_EQ(leftovers(path("out"), whole), "");
  fs::remove(path("out/" + last + ".partial"));
  // A line may be lost, so that its file is written again, and lines that no run of ours wrote are
  // passed over.
  for (const auto& [name, bytes] : contents(path("out"))) {
    if (!name.ends_with(kJournal)) continue;
    fs::resize_file(path("out/" + name), bytes.rfind('\n', bytes.size() - 2) + 1);
    std::ofstream(path("out/" + name), std::ios::app)
        << "5 /etc/passwd\n99999999999999999999 x\n-1 y\nnonsense\n";
  }
  expect_resumed(path("out"), whole);
}

TEST_P(InterruptedRun, ACancelledRunIsResumed) {
  make_source();
  const auto whole = expected();
  RunOptions options;
  options.progress = [](const Progress&) { throw std::runtime_error("cancelled"); };
  EXPECT_THROW(GetParam().run(path("c"), path("out"), options), std::runtime_error);
  EXPECT_EQ(leftovers(path("out"), whole), "");
  expect_resumed(path("out"), whole);
}

TEST_P(InterruptedRun, ADamagedSourceFailsWithoutOutput) {
  make_source();
  const std::string name = rank_file(path("c"), 1, "optim");
  fs::resize_file(name, fs::file_size(name) / 2);
  EXPECT_THAT(failure(path("out")), HasSubstr("rank_1"));
  EXPECT_TRUE(contents(path("out")).empty());
}

TEST_P(InterruptedRun, AFolderThatAnotherWritesToIsLeftToIt) {
  make_source();
  const auto whole = expected();
  {
    const formats::FolderLock other(path("out") + GetParam().folder);
    EXPECT_THAT(failure(path("out")), HasSubstr(concat("in use by process ", ::getpid())));
    EXPECT_TRUE(contents(path("out")).empty());
  }
  run(path("out"));
  EXPECT_EQ(contents(path("out")), whole);
}

TEST_P(InterruptedRun, TheCheckpointsOfALiveRunAreLeftToIt) {
  make_source();
  fs::create_directories(path("run/checkpoints"));
  file("run/run.json", "{}");
  const formats::FolderLock other(path("run"));
  const std::string out = path("run/checkpoints") + (GetParam().folder[0] == 0 ? "/a" : "");
  EXPECT_THAT(failure(out), AllOf(HasSubstr(path("run")), HasSubstr("in use by process")));
  EXPECT_TRUE(contents(path("run/checkpoints")).empty());
}

TEST_P(InterruptedRun, TemporaryFilesOfADeadRunAreTakenOver) {
  make_source();
  const auto whole = expected();
  for (const auto& [name, bytes] : whole) {
    fs::create_directories(fs::path(path("out/" + name)).parent_path());
    file("out/" + name + ".partial", bytes + "and more");
  }
  run(path("out"));
  EXPECT_EQ(contents(path("out")), whole);
}

INSTANTIATE_TEST_SUITE_P(Verbs, InterruptedRun, ::testing::ValuesIn(kVerbs),
                         [](const auto& info) { return std::string(info.param.name); });

class KilledRun : public SmallFiles {};

size_t lines_of(const std::string& path) {
  const std::string text = formats::bytes_of_file(path);
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST_F(KilledRun, WhatHasItsNameIsWholeAndTheRestIsResumed) {
  SmallCheckpoint what;
  for (int i = 0; i < 300; ++i) what.groups[1].push_back({concat("p", i), {8, 8}});
  const std::string from = make("c", what);
  run_universal(from, path("reference"), {});
  const auto whole = contents(path("reference"));
  const std::string journal = path(std::string("out/uni/") + kJournal);
  const pid_t child = ::fork();
  if (child == 0) {
    run_universal(from, path("out"), {});
    ::_exit(0);
  }
  int status = 0;
  while (lines_of(journal) < 20 && ::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  for (const auto& [name, bytes] : contents(path("out"))) {
    if (name.ends_with(kJournal) || name.ends_with(".partial")) continue;
    EXPECT_EQ(bytes, whole.at(name)) << name;
  }
  RunOptions again;
  again.resume = true;
  const OutputReport report = run_universal(from, path("out"), again);
  EXPECT_EQ(contents(path("out")), whole);
  EXPECT_TRUE(WIFEXITED(status) || report.kept_files >= 15);
}

class TwoFiles : public SmallFiles {};

TEST_F(TwoFiles, MayBeWrittenIntoOneFolderAtOnce) {
  const std::string from = make("c", {});
  fs::create_directories(path("d"));
  const formats::FolderLock other(path("d"));
  ExportOptions options;
  options.source.path = from;
  options.output = path("d/a.pt");
  options.format = "torch";
  export_weights(options);
  EXPECT_TRUE(fs::exists(path("d/a.pt")));
  formats::OutputFile second(path("d/b.pt"), true);
  options.output = path("d/b.pt");
  EXPECT_THAT(error_of([&] { export_weights(options); }), HasSubstr("in use by process"));
}

}  // namespace
}  // namespace zeromuon::convert
