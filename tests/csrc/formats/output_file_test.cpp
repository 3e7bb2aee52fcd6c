#include "csrc/formats/output_file.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>

#include "csrc/formats/folder_lock.h"
#include "tests/csrc/formats/builders.h"

namespace zeromuon::formats {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Output : public FolderTest {
 protected:
  void write(const std::string& name, const std::string& text) const {
    OutputFile output(path(name), true);
    output.write_at(0, text.data(), text.size());
    output.commit();
  }
};

// A process that does `work`, says so, and waits for its end.
class Other {
 public:
  explicit Other(const std::function<void()>& work) {
    int ready[2];
    if (::pipe(ready) != 0) throw std::runtime_error("pipe");
    process_ = ::fork();
    if (process_ == 0) {
      work();
      static_cast<void>(!::write(ready[1], "x", 1));
      ::pause();
      ::_exit(0);
    }
    ::close(ready[1]);
    char byte = 0;
    static_cast<void>(!::read(ready[0], &byte, 1));
    ::close(ready[0]);
  }
  ~Other() { kill(); }

  pid_t process() const { return process_; }
  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = 0;
  }

 private:
  pid_t process_ = 0;
};

TEST_F(Output, AFileThatAnotherProcessWritesIsLeftToIt) {
  static std::unique_ptr<OutputFile> held;  // never finished
  Other other([&] {
    held = std::make_unique<OutputFile>(path("a"), true);
    held->write_at(0, "other", 5);
  });
  EXPECT_THAT(error_of([&] { write("a", "mine"); }),
              AllOf(HasSubstr(concat("in use by process ", other.process())),
                    HasSubstr("wait for its end")));
  EXPECT_EQ(bytes_of_file(path("a.partial")), "other") << "nothing of it is touched";
  other.kill();
  write("a", "mine");
  EXPECT_EQ(bytes_of_file(path("a")), "mine");
  EXPECT_FALSE(fs::exists(path("a.partial")));
}

TEST_F(Output, WhatADeadProcessLeftIsNotInTheNextFile) {
  file("a.partial", "longer than what follows");
  write("a", "short");
  EXPECT_EQ(bytes_of_file(path("a")), "short");
}

TEST_F(Output, AFileThatHasAnotherNameTooKeepsItsContent) {
  file("precious", "content");
  fs::create_hard_link(path("precious"), path("a.partial"));
  write("a", "mine");
  EXPECT_EQ(bytes_of_file(path("precious")), "content");
  EXPECT_EQ(bytes_of_file(path("a")), "mine");
}

TEST_F(Output, ATemporaryFileThatSomebodyReplacedIsNotGivenTheName) {
  const std::string error = error_of([&] {
    OutputFile output(path("a"), true);
    output.write_at(0, "mine", 4);
    fs::remove(path("a.partial"));
    file("a.partial", "another's");
    output.commit();
  });
  EXPECT_THAT(error, HasSubstr("another process took it"));
  EXPECT_EQ(bytes_of_file(path("a.partial")), "another's");
  EXPECT_FALSE(fs::exists(path("a")));
}

TEST_F(Output, ALockedFolderNamesItsHolderAndIsFreeWhenThatIsGone) {
  static std::unique_ptr<FolderLock> held;
  Other other([&] { held = std::make_unique<FolderLock>(path("out")); });
  EXPECT_THAT(error_of([&] { FolderLock(path("out")); }),
              HasSubstr(concat("in use by process ", other.process())));
  other.kill();
  { FolderLock mine(path("out")); }
  EXPECT_TRUE(fs::exists(path("out"))) << "made by the other";
}

TEST_F(Output, ALockLeavesNoFolderThatNobodyFilled) {
  { FolderLock lock(path("a/b/c")); }
  EXPECT_FALSE(fs::exists(path("a")));
  {
    FolderLock lock(path("a/b/c"));
    file("a/b/c/x", "");
  }
  EXPECT_TRUE(fs::exists(path("a/b/c/x")));
}

}  // namespace
}  // namespace zeromuon::formats
