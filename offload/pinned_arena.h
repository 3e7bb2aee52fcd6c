// Host memory that a GPU reads and writes directly, of exactly the planned size.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/mapping.h"
#include "offload/slot_sizes.h"

namespace zeromuon::offload {

// Tells the GPU's driver about host memory.
// Thread: used by the threads that make and destroy arenas.
class Registrar {
 public:
  virtual ~Registrar() = default;
  // Returns why it failed, for people; empty: it did not.
  virtual std::string register_memory(void* at, int64_t bytes) = 0;
  // `at` as registered. Must not throw.
  virtual void unregister_memory(void* at) = 0;
};

// A part of an arena, aligned to kBlockAlignment; valid while the arena lives.
struct PinnedBlock {
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

// Owns its pages: mapped and touched once, registered once, in segments. Those of a registrar are
// not the children's of a fork: on old kernels a child that writes to a page takes it from the
// parent's copies; a child that touches one is ended by SIGSEGV. Sizes are rounded up to
// the page only; registering is all or nothing, because a copy must not cross from registered
// memory into other memory.
// Thread: take() by one thread at a time; blocks by whoever holds them.
class PinnedArena {
 public:
  static constexpr int64_t kBlockAlignmentBytes = kBlockAlignment;
  // Of a registration. A copy that spans two of them fails, so buffers should not: it is larger
  // than what a step keeps in flight, and below the 512 GiB from which single registrations were
  // seen to fail.
  static constexpr int64_t kSegmentBytes = int64_t{64} << 30;

  // Writes to every page of [at, at + bytes), so that each lies near who will work on it.
  using FirstTouch = std::function<void(std::byte* at, int64_t bytes)>;

  // bytes: needed() of the blocks that will be taken. registrar: null: memory for the CPU alone,
  // never registered. Without `touch` an OpenMP team of the calling thread
  // touches the pages.
  PinnedArena(int64_t bytes, std::shared_ptr<Registrar> registrar, const FirstTouch& touch = {},
              int64_t segment_bytes = kSegmentBytes);
  PinnedArena(PinnedArena&& other) noexcept = default;
  PinnedArena& operator=(PinnedArena&& other) noexcept;
  ~PinnedArena();

  // What blocks of these sizes take of an arena, without the rounding to a page.
  static int64_t needed(std::span<const int64_t> block_bytes);
  static int64_t needed(std::initializer_list<int64_t> block_bytes);

  // Contents are unspecified. Raises InternalError when the plan had no room for it.
  PinnedBlock take(int64_t bytes);

  int64_t bytes() const { return pages_.bytes(); }  // mapped
  int64_t registered_bytes() const;                 // all or none
  // Why the memory stayed pageable and what that means, for people; empty: as wanted.
  const std::string& warning() const { return warning_; }

 private:
  void touch_pages(const FirstTouch& touch);
  void register_segments(int64_t segment_bytes);
  void unregister();

  Mapping pages_;
  int64_t planned_bytes_ = 0, taken_bytes_ = 0;
  std::shared_ptr<Registrar> registrar_;
  std::vector<std::byte*> registered_;  // segments
  std::string warning_;
};

}  // namespace zeromuon::offload
