// A file that is read at offsets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace zeromuon::formats {

// Whether a text from a file may be the name of another in a folder at hand: not empty, no slash,
// no control characters, not "." or "..".
bool is_file_name(const std::string& text);

// Reads go through pread into the caller's buffer, not through a mapping: mapped pages count as the
// process's memory, and a mapped file that shrinks meanwhile ends the process.
// Thread: any; reads are independent.
class InputFile {
 public:
  // Raises FormatError when it cannot be opened or is no regular file.
  explicit InputFile(std::string path);
  // Only [offset, offset + bytes) of the file, as if that were all. Offsets count from there.
  InputFile(std::string path, uint64_t offset, uint64_t bytes);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  // Changes when the file is replaced or written to: device, inode, size and time.
  std::string fingerprint() const { return fingerprint_; }

  // Closes the file until the next read, which opens it for itself: for formats of thousands of
  // small files. Before other threads read.
  void park() const;

  // Raises FormatError when [offset, offset + bytes) is not all inside the file.
  void read(uint64_t offset, void* out, uint64_t bytes) const;
  std::vector<uint8_t> read(uint64_t offset, uint64_t bytes) const;

 private:
  void check_inside(uint64_t offset, uint64_t bytes) const;
  void read_from(int descriptor, uint64_t offset, void* out, uint64_t bytes) const;

  std::string path_, fingerprint_;
  mutable int descriptor_ = -1;  // -1: parked
  uint64_t base_ = 0, size_ = 0;
};

// The whole of a small file. Raises FormatError when it is larger than `limit_bytes`.
std::string read_text(const std::string& path, uint64_t limit_bytes);

}  // namespace zeromuon::formats
