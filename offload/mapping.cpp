#include "offload/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::offload {
namespace {

// A system call on a range that came from mmap cannot fail otherwise than by our mistake.
void unmap(std::byte* from, std::byte* to) {
  if (from != to) ::munmap(from, static_cast<size_t>(to - from));
}

}  // namespace

int64_t page_bytes() {
  static const int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

int64_t whole_pages(int64_t bytes) {
  return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

// Address space in excess of the alignment is given back: it never held memory.
Mapping::Mapping(int64_t bytes, Access access, int64_t alignment_bytes) {
  invariant(bytes >= 0 && alignment_bytes >= page_bytes(), "mapping: asked for ", bytes,
            " bytes, aligned to ", alignment_bytes);
  bytes_ = whole_pages(std::max<int64_t>(bytes, 1));
  const int64_t excess = alignment_bytes - page_bytes();
  const int protection = access == Access::kNone ? PROT_NONE : PROT_READ | PROT_WRITE;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (access == Access::kNone ? MAP_NORESERVE : 0);
  void* got = ::mmap(nullptr, static_cast<size_t>(bytes_ + excess), protection, flags, -1, 0);
  if (got == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(got);
  const auto address = reinterpret_cast<uintptr_t>(got);
  const auto mask = static_cast<uintptr_t>(alignment_bytes) - 1;
  data_ = begin + (((address + mask) & ~mask) - address);
  unmap(begin, data_);
  unmap(data_ + bytes_, begin + bytes_ + excess);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  Mapping old(std::move(*this));
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

Mapping::~Mapping() { unmap(data_, data_ + bytes_); }

}  // namespace zeromuon::offload
