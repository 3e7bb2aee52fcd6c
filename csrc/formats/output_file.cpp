#include "csrc/formats/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {

namespace fs = std::filesystem;

OutputFile::OutputFile(std::string path, bool replace)
    : path_(std::move(path)), partial_(path_ + ".partial") {
  std::error_code ignored;
  if (!replace && fs::exists(fs::symlink_status(path_, ignored))) {
    throw_format_error(path_, -1, "no file of this name", "one that exists",
                       "choose another output, or say --force to replace it");
  }
  descriptor_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  check(descriptor_ >= 0, "create the file");
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(partial_.c_str());
}

void OutputFile::check(bool good, const char* action) const {
  if (!good) throw_system_error(path_, action, errno);
}

void OutputFile::reserve(uint64_t bytes) {
  if (bytes == 0) return;
  // File systems that cannot reserve write without it.
  const bool reserved = ::fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes)) == 0;
  const bool cannot = errno == EOPNOTSUPP || errno == ENOSYS;
  check(reserved || cannot, "reserve the space of the file");
}

void OutputFile::write_at(uint64_t offset, const void* data, uint64_t bytes) {
  const auto* from = static_cast<const uint8_t*>(data);
  const uint64_t begin = offset, all = bytes;
  while (bytes > 0) {
    const ssize_t done = ::pwrite(descriptor_, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    check(done >= 0, "write the file");
    from += done;
    offset += static_cast<uint64_t>(done);
    bytes -= static_cast<uint64_t>(done);
  }
  if (all >= (1 << 20)) {  // a hint: its result changes nothing
    ::sync_file_range(descriptor_, static_cast<off_t>(begin), static_cast<off_t>(all),
                      SYNC_FILE_RANGE_WRITE);
  }
}

void OutputFile::commit(bool sync_parent) {
  check(::fsync(descriptor_) == 0, "sync the file to disk");
  check(::close(std::exchange(descriptor_, -1)) == 0, "close the file");
  if (::rename(partial_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(partial_.c_str());
    throw_system_error(path_, "give the finished file its name", error);
  }
  if (sync_parent) sync_folder(fs::path(path_).parent_path().string());
}

void make_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw_system_error(path, "make the folder", error.value());
}

void sync_folder(const std::string& path) {
  const std::string folder = path.empty() ? "." : path;
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_system_error(folder, "open the folder", errno);
  const bool synced = ::fsync(descriptor) == 0 || errno == EINVAL;  // some file systems cannot
  const int error = errno;
  ::close(descriptor);
  if (!synced) throw_system_error(folder, "sync the folder", error);
}

void write_text(const std::string& path, const std::string& text, bool replace) {
  OutputFile file(path, replace);
  file.write_at(0, text.data(), text.size());
  file.commit();
}

}  // namespace zeromuon::formats
