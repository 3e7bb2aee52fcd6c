// Bytes as a file that exists in memory only.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace zeromuon::formats {

// Thread: one.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    const bool good =
        descriptor_ >= 0 && ::write(descriptor_, data, bytes) == static_cast<ssize_t>(bytes);
    if (!good) std::abort();
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace zeromuon::formats
