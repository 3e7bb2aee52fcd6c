#include "offload/pinned_arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/base/check.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kGiB = int64_t{1} << 30;

// Remembers what is registered; refuses the call number `refused` (from 1).
class RecordingRegistrar final : public Registrar {
 public:
  explicit RecordingRegistrar(int refused = 0) : refused_(refused) {}
  std::string register_memory(void* at, int64_t bytes) override {
    if (++calls_ == refused_) return "out of locked memory";
    begins.push_back(static_cast<std::byte*>(at));
    sizes.push_back(bytes);
    return "";
  }
  void unregister_memory(void* at) override {
    const auto found = std::ranges::find(begins, at);
    ASSERT_NE(found, begins.end()) << "unregistered what was not registered";
    sizes.erase(sizes.begin() + (found - begins.begin()));
    begins.erase(found);
  }

  std::vector<std::byte*> begins;
  std::vector<int64_t> sizes;

 private:
  int refused_, calls_ = 0;
};

// Of a test, which outlives the arenas.
std::shared_ptr<Registrar> known(RecordingRegistrar& registrar) {
  return {&registrar, [](Registrar*) {}};
}

int64_t resident_bytes(std::byte* at, int64_t bytes) {
  std::vector<unsigned char> pages(bytes / page_bytes());
  EXPECT_EQ(::mincore(at, bytes, pages.data()), 0);
  return page_bytes() * std::ranges::count_if(pages, [](auto page) { return page & 1; });
}

// Leaves large arenas without memory.
void touch_nothing(std::byte*, int64_t) {}

TEST(PinnedArena, TakesThePlannedBytesUpToAPageAndNoPowerOfTwo) {
  RecordingRegistrar registrar;
  const int64_t planned = 5 * page_bytes() + 1;
  const PinnedArena arena(planned, known(registrar));
  EXPECT_EQ(arena.bytes(), 6 * page_bytes());
  EXPECT_EQ(arena.registered_bytes(), 6 * page_bytes());
  EXPECT_THAT(registrar.sizes, ElementsAre(6 * page_bytes()));
  EXPECT_EQ(arena.warning(), "");
}

TEST(PinnedArena, BlocksAreAlignedApartAndFillThePlanExactly) {
  const std::vector<int64_t> sizes = {1, 128, 129, 0, 1000};
  const int64_t planned = PinnedArena::needed(sizes);
  EXPECT_EQ(planned, 128 + 128 + 256 + 0 + 1024);
  PinnedArena arena(planned, nullptr);
  std::byte* end = nullptr;
  for (const int64_t size : sizes) {
    const PinnedBlock block = arena.take(size);
    EXPECT_EQ(block.bytes, size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block.data) % kBlockAlignment, 0u);
    EXPECT_GE(block.data, end);
    std::fill(block.data, block.data + size, std::byte{1});
    end = block.data + size;
  }
  EXPECT_THAT(testing::error_of([&] { arena.take(1); }),
              HasSubstr("asked for 1 bytes with 1536 of 1536 planned bytes taken"));
  EXPECT_THROW(arena.take(-1), InternalError);
  EXPECT_EQ(arena.take(0).bytes, 0);
}

TEST(PinnedArena, WithoutARegistrarItIsOrdinaryMemoryWithoutAWarning) {
  const PinnedArena arena(PinnedArena::needed({100}), nullptr);
  EXPECT_EQ(arena.registered_bytes(), 0);
  EXPECT_EQ(arena.warning(), "");
}

TEST(PinnedArena, RegistersSegmentsThatCoverItOnce) {
  RecordingRegistrar registrar;
  const PinnedArena arena(2 * kGiB + 100, known(registrar), touch_nothing, kGiB);
  EXPECT_THAT(registrar.sizes, ElementsAre(kGiB, kGiB, page_bytes()));
  ASSERT_EQ(registrar.begins.size(), 3u);
  EXPECT_EQ(registrar.begins[1] - registrar.begins[0], kGiB);
  EXPECT_EQ(registrar.begins[2] - registrar.begins[1], kGiB);
  EXPECT_EQ(arena.registered_bytes(), arena.bytes());
  EXPECT_EQ(arena.bytes(), 2 * kGiB + page_bytes());
}

TEST(PinnedArena, ASegmentThatIsRefusedLeavesEverythingPageableAndSaysWhy) {
  RecordingRegistrar registrar(2);
  PinnedArena arena(2 * kGiB, known(registrar), touch_nothing, kGiB);
  EXPECT_THAT(registrar.sizes, IsEmpty());
  EXPECT_EQ(arena.registered_bytes(), 0);
  EXPECT_THAT(arena.warning(), HasSubstr("2147483648 bytes stay pageable"));
  EXPECT_THAT(arena.warning(), HasSubstr("after 1073741824, failed: out of locked memory"));
  arena.take(100).data[99] = std::byte{1};
}

TEST(PinnedArena, UnregistersOnceWhateverMoves) {
  RecordingRegistrar registrar;
  {
    PinnedArena first(page_bytes(), known(registrar));
    PinnedArena second(2 * page_bytes(), known(registrar));
    EXPECT_EQ(registrar.sizes.size(), 2u);
    std::byte* const data = first.take(64).data;
    PinnedArena third(std::move(first));
    EXPECT_EQ(third.take(64).data, data + 128);
    second = std::move(third);
    EXPECT_THAT(registrar.sizes, ElementsAre(page_bytes()));
    EXPECT_EQ(second.bytes(), page_bytes());
    EXPECT_EQ(second.take(64).data, data + 256);
  }
  EXPECT_THAT(registrar.sizes, IsEmpty());
}

// What a forked process sees when it writes to the arena: the signal that ended it, 0 for none.
int signal_of_a_child_that_writes(std::byte* at) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);  // sanitizers have a handler
    *at = std::byte{1};
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(PinnedArena, ThatIsRegisteredIsNotAChilds) {
  RecordingRegistrar registrar;
  PinnedArena pinned(page_bytes(), known(registrar)), pageable(page_bytes(), nullptr);
  EXPECT_EQ(signal_of_a_child_that_writes(pinned.take(64).data), SIGSEGV);
  EXPECT_EQ(signal_of_a_child_that_writes(pageable.take(64).data), 0);
}

TEST(PinnedArena, TheCallersFirstTouchGetsEveryPageBeforeTheyAreRegistered) {
  RecordingRegistrar registrar;
  std::byte* touched = nullptr;
  int64_t touched_bytes = 0;
  size_t registered_then = 1;
  const PinnedArena arena(3 * page_bytes(), known(registrar), [&](std::byte* at, int64_t bytes) {
    touched = at;
    touched_bytes = bytes;
    registered_then = registrar.begins.size();
  });
  EXPECT_EQ(touched_bytes, arena.bytes());
  EXPECT_EQ(registered_then, 0u);
  EXPECT_THAT(registrar.begins, ElementsAre(touched));
}

TEST(PinnedArena, LargeOnesBeginOnAHugePageAndAreTouchedByTheTeam) {
  constexpr int64_t kHuge = int64_t{2} << 20;
  PinnedArena arena(2 * kHuge + page_bytes(), nullptr);
  const PinnedBlock block = arena.take(2 * kHuge + page_bytes());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block.data) % kHuge, 0u);
  EXPECT_EQ(arena.bytes(), 2 * kHuge + page_bytes());
  EXPECT_EQ(resident_bytes(block.data, block.bytes), block.bytes);
}

}  // namespace
}  // namespace zeromuon::offload
