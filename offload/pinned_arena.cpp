#include "offload/pinned_arena.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "csrc/base/check.h"
#include "csrc/base/parallel.h"

namespace zeromuon::offload {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// One huge page, or its worth of small ones, at a time.
void touch_by_team(std::byte* at, int64_t bytes) {
  const int64_t chunks = (bytes + kHugePageBytes - 1) / kHugePageBytes;
  parallel_for(chunks, omp_get_max_threads(), [&](int64_t chunk, int) {
    const int64_t end = std::min(bytes, (chunk + 1) * kHugePageBytes);
    for (int64_t page = chunk * kHugePageBytes; page < end; page += page_bytes()) {
      *static_cast<volatile std::byte*>(at + page) = std::byte{0};
    }
  });
}

}  // namespace

PinnedArena::PinnedArena(int64_t bytes, std::shared_ptr<Registrar> registrar,
                         const FirstTouch& touch, int64_t segment_bytes)
    : pages_(bytes, Mapping::Access::kReadWrite,
             bytes >= kHugePageBytes ? kHugePageBytes : page_bytes()),
      planned_bytes_(bytes),
      registrar_(std::move(registrar)) {
  touch_pages(touch);
  if (registrar_ == nullptr) return;
  ::madvise(pages_.data(), static_cast<size_t>(pages_.bytes()), MADV_DONTFORK);
  register_segments(segment_bytes);
}

PinnedArena& PinnedArena::operator=(PinnedArena&& other) noexcept {
  unregister();
  pages_ = std::move(other.pages_);
  planned_bytes_ = other.planned_bytes_;
  taken_bytes_ = other.taken_bytes_;
  registrar_ = std::move(other.registrar_);
  registered_ = std::exchange(other.registered_, {});
  warning_ = std::move(other.warning_);
  return *this;
}

PinnedArena::~PinnedArena() { unregister(); }

int64_t PinnedArena::needed(std::span<const int64_t> block_bytes) {
  int64_t sum = 0;
  for (const int64_t bytes : block_bytes) sum += aligned(bytes);
  return sum;
}

int64_t PinnedArena::needed(std::initializer_list<int64_t> block_bytes) {
  return needed(std::span(block_bytes.begin(), block_bytes.size()));
}

PinnedBlock PinnedArena::take(int64_t bytes) {
  invariant(bytes >= 0, "pinned arena: asked for a block of ", bytes, " bytes");
  invariant(bytes <= planned_bytes_ - taken_bytes_, "pinned arena: asked for ", bytes,
            " bytes with ", taken_bytes_, " of ", planned_bytes_, " planned bytes taken");
  std::byte* const at = pages_.data() + taken_bytes_;
  taken_bytes_ += aligned(bytes);
  return {at, bytes};
}

int64_t PinnedArena::registered_bytes() const { return registered_.empty() ? 0 : bytes(); }

// The advice to use huge pages is not heeded everywhere; small ones serve as well, more slowly.
void PinnedArena::touch_pages(const FirstTouch& touch) {
  if (bytes() >= kHugePageBytes) {
    ::madvise(pages_.data(), static_cast<size_t>(bytes()), MADV_HUGEPAGE);
  }
  touch ? touch(pages_.data(), bytes()) : touch_by_team(pages_.data(), bytes());
}

void PinnedArena::register_segments(int64_t segment_bytes) {
  registered_.reserve(static_cast<size_t>((bytes() + segment_bytes - 1) / segment_bytes));
  for (int64_t begin = 0; begin < bytes(); begin += segment_bytes) {
    const int64_t length = std::min(segment_bytes, bytes() - begin);
    const std::string why = registrar_->register_memory(pages_.data() + begin, length);
    if (!why.empty()) {
      unregister();
      warning_ = concat("pinned memory: ", bytes(), " bytes stay pageable, and copies to and from ",
                        "the GPU will be slower and block the CPU: registering ", length,
                        " of them, after ", begin, ", failed: ", why,
                        "; a lower max_bytes_in_flight needs less");
      return;
    }
    registered_.push_back(pages_.data() + begin);
  }
}

void PinnedArena::unregister() {
  for (std::byte* segment : registered_) registrar_->unregister_memory(segment);
  registered_.clear();
}

}  // namespace zeromuon::offload
