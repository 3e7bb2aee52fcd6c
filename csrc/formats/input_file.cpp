#include "csrc/formats/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {

namespace {

int open_for_reading(const std::string& path) {
  // Not blocking: a named pipe must not hold us up.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_system_error(path, "open the file for reading", errno);
  return descriptor;
}

std::string fingerprint_of(const struct stat& status) {
  return concat(status.st_dev, ":", status.st_ino, ":", status.st_size, ":", status.st_mtim.tv_sec,
                ".", status.st_mtim.tv_nsec);
}

}  // namespace

bool is_file_name(const std::string& text) {
  const bool plain = std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<uint8_t>(c) < 0x20 || c == '/' || c == 0x7f;
  });
  return plain && !text.empty() && text != "." && text != "..";
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  descriptor_ = open_for_reading(path_);
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw_format_error(path_, -1, "a regular file", "something else", "check the path");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  fingerprint_ = fingerprint_of(status);
}

InputFile::InputFile(std::string path, uint64_t offset, uint64_t bytes)
    : InputFile(std::move(path)) {
  check_inside(offset, bytes);
  base_ = offset;
  size_ = bytes;
}

InputFile::~InputFile() { park(); }

void InputFile::park() const {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

void InputFile::check_inside(uint64_t offset, uint64_t bytes) const {
  if (offset <= size_ && bytes <= size_ - offset) return;
  throw_format_error(path_, static_cast<int64_t>(std::min<uint64_t>(offset, INT64_MAX)),
                     concat(bytes, " bytes"), concat("a file of ", size_, " bytes"), kDamaged);
}

void InputFile::read(uint64_t offset, void* out, uint64_t bytes) const {
  check_inside(offset, bytes);
  if (descriptor_ >= 0) {
    read_from(descriptor_, offset, out, bytes);
    return;
  }
  const InputFile again(path_);
  if (again.fingerprint_ != fingerprint_) {
    throw_format_error(path_, -1, "the file as it was", "a file that was changed meanwhile",
                       "do not change it while it is read");
  }
  read_from(again.descriptor_, offset, out, bytes);
}

void InputFile::read_from(int descriptor, uint64_t offset, void* out, uint64_t bytes) const {
  auto* to = static_cast<uint8_t*>(out);
  offset += base_;
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error(path_, "read", errno);
    if (got == 0) {
      throw_format_error(path_, static_cast<int64_t>(offset), concat(bytes, " more bytes"),
                         "the end: the file shrank while it was read",
                         "do not change it meanwhile");
    }
    to += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
}

std::vector<uint8_t> InputFile::read(uint64_t offset, uint64_t bytes) const {
  check_inside(offset, bytes);  // before memory is taken
  std::vector<uint8_t> out(bytes);
  read(offset, out.data(), bytes);
  return out;
}

std::string read_text(const std::string& path, uint64_t limit_bytes) {
  const InputFile file(path);
  if (file.size() > limit_bytes) {
    throw_format_error(path, -1, concat("at most ", limit_bytes, " bytes"),
                       concat(file.size(), " bytes"), "check that this is the right file");
  }
  std::string text(file.size(), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

}  // namespace zeromuon::formats
