// What a fuzz target takes of memory: more than its input is worth is a finding.
//
// Replaces operator new and delete of the program: included by one source of it.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace zeromuon::formats {

inline int64_t memory_now = 0, memory_peak = 0;

inline void* counted(void* memory) {
  if (memory == nullptr) return nullptr;
  memory_now += static_cast<int64_t>(::malloc_usable_size(memory));
  memory_peak = std::max(memory_peak, memory_now);
  return memory;
}

inline void* counted_or_throw(size_t bytes) {
  void* const memory = counted(std::malloc(bytes));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

inline void uncounted(void* memory) {
  memory_now -= static_cast<int64_t>(::malloc_usable_size(memory));
  std::free(memory);
}

// Ends the program when more than 1 MiB and 32 times `bytes` were taken at once in its life.
// Thread: the only one.
class MemoryBound {
 public:
  explicit MemoryBound(size_t bytes)
      : limit_((1 << 20) + 32 * static_cast<int64_t>(bytes)), before_(memory_now) {
    memory_peak = memory_now;
  }
  ~MemoryBound() {
    if (memory_peak - before_ <= limit_) return;
    std::fprintf(stderr, "%lld bytes of memory, expected at most %lld\n",
                 static_cast<long long>(memory_peak - before_), static_cast<long long>(limit_));
    std::abort();
  }
  MemoryBound(const MemoryBound&) = delete;
  MemoryBound& operator=(const MemoryBound&) = delete;

 private:
  int64_t limit_, before_;
};

}  // namespace zeromuon::formats

void* operator new(size_t bytes) { return zeromuon::formats::counted_or_throw(bytes); }
void* operator new[](size_t bytes) { return zeromuon::formats::counted_or_throw(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return zeromuon::formats::counted(std::malloc(bytes));
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return zeromuon::formats::counted(std::malloc(bytes));
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  zeromuon::formats::uncounted(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  zeromuon::formats::uncounted(memory);
}
void operator delete(void* memory) noexcept { zeromuon::formats::uncounted(memory); }
void operator delete[](void* memory) noexcept { zeromuon::formats::uncounted(memory); }
void operator delete(void* memory, size_t) noexcept { zeromuon::formats::uncounted(memory); }
void operator delete[](void* memory, size_t) noexcept { zeromuon::formats::uncounted(memory); }
