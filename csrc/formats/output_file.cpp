#include "csrc/formats/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>

#include "csrc/formats/folder_lock.h"
#include "csrc/formats/format_error.h"

namespace zeromuon::formats {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::milliseconds kPatience{5000}, kPoll{20};  // with a file that another writes

}  // namespace

OutputFile::OutputFile(std::string path, bool replace, bool waits)
    : path_(std::move(path)), partial_(path_ + ".partial") {
  std::error_code ignored;
  if (!replace && fs::exists(fs::symlink_status(path_, ignored))) {
    throw_format_error(path_, -1, "no file of this name", "one that exists",
                       "choose another output, or say --force to replace it");
  }
  const auto end = std::chrono::steady_clock::now() + (waits ? kPatience : kPoll);
  while (!open_alone()) {
    if (std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(kPoll);
      continue;
    }
    const int others = ::open(partial_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    const std::string holder = others < 0 ? "another process" : holder_of_lock(others);
    if (others >= 0) ::close(others);
    throw_format_error(path_, -1, "a file that no other process writes", "one in use by " + holder,
                       "wait for its end, or end it");
  }
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  if (has_the_name()) ::unlink(partial_.c_str());
  ::close(descriptor_);
}

// The temporary file, empty and locked; false: another process has it, or took its name meanwhile.
bool OutputFile::open_alone() {
  descriptor_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  check(descriptor_ >= 0, "create the file");
  const bool locked = ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || has_no_locks(errno);
  struct stat status {};
  // A file with a further name is somebody else's: only the name is taken.
  const bool alone = locked && has_the_name() && ::fstat(descriptor_, &status) == 0;
  if (alone && status.st_nlink == 1) {
    check(::ftruncate(descriptor_, 0) == 0, "empty the file");
    return true;
  }
  if (alone) ::unlink(partial_.c_str());
  ::close(std::exchange(descriptor_, -1));
  return false;
}

bool OutputFile::has_the_name() const {
  struct stat mine {
  }, there{};
  return ::fstat(descriptor_, &mine) == 0 && ::lstat(partial_.c_str(), &there) == 0 &&
         mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
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
  if (!has_the_name()) {
    throw_format_error(path_, -1, "the temporary file " + partial_, "another file of that name",
                       "another process took it: write again");
  }
  check(::rename(partial_.c_str(), path_.c_str()) == 0, "give the finished file its name");
  check(::close(std::exchange(descriptor_, -1)) == 0, "close the file");
  if (sync_parent) sync_folder(fs::path(path_).parent_path().string());
}

std::vector<std::string> make_folders(const std::string& path, bool sync) {
  std::error_code error;
  std::vector<std::string> missing;
  for (fs::path at = fs::path(path); !at.empty() && !fs::exists(at, error); at = at.parent_path()) {
    if (at.has_filename()) missing.push_back(at.string());
    if (at == at.parent_path()) break;
  }
  std::reverse(missing.begin(), missing.end());
  fs::create_directories(path, error);
  if (error) throw_system_error(path, "make the folder", error.value());
  if (!sync) return missing;
  for (const std::string& folder : missing) sync_folder(fs::path(folder).parent_path().string());
  return missing;
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
  OutputFile file(path, replace, true);
  file.write_at(0, text.data(), text.size());
  file.commit();
}

}  // namespace zeromuon::formats
