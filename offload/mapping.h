// Anonymous pages of this process.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeromuon::offload {

int64_t page_bytes();
// `bytes` rounded up to whole pages.
int64_t whole_pages(int64_t bytes);

// Owner of a range of pages. Fresh pages read as zero.
// Thread: one owner at a time.
class Mapping {
 public:
  enum class Access : uint8_t { kReadWrite, kNone };  // kNone: addresses only; touching them faults

  Mapping() = default;
  // `bytes` is rounded up to whole pages; at least one. alignment_bytes: a power of two, at least a
  // page. Raises std::bad_alloc when there is no address space.
  Mapping(int64_t bytes, Access access, int64_t alignment_bytes = page_bytes());
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace zeromuon::offload
