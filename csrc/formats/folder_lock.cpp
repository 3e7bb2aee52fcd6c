#include "csrc/formats/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "csrc/formats/format_error.h"
#include "csrc/formats/output_file.h"

namespace zeromuon::formats {
namespace {

constexpr size_t kLongestCommand = 200;

std::string command_of(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/cmdline", std::ios::binary);
  std::string command((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::replace(command.begin(), command.end(), '\0', ' ');
  while (!command.empty() && command.back() == ' ') command.pop_back();
  return command.substr(0, kLongestCommand);
}

}  // namespace

FolderLock::FolderLock(const std::string& folder) : made_(make_folders(folder, true)) {
  descriptor_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const int error = descriptor_ < 0 ? errno : 0;
  if (error != 0) {
    remove_made();
    throw_system_error(folder, "open the folder", error);
  }
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  if (has_no_locks(errno)) {
    std::fprintf(
        stderr,
        "warning: %s: its file system has no locks (%s): nothing keeps two runs apart there\n",
        folder.c_str(), std::strerror(errno));
    return;
  }
  const std::string holder = holder_of_lock(descriptor_);
  ::close(descriptor_);
  throw_format_error(folder, -1, "a folder that no other process writes to",
                     "one in use by " + holder, "wait for its end, or end it");
}

FolderLock::~FolderLock() {
  ::close(descriptor_);
  remove_made();
}

void FolderLock::remove_made() {
  for (auto folder = made_.rbegin(); folder != made_.rend(); ++folder) ::rmdir(folder->c_str());
}

// proc(5): the lines of /proc/locks are number, kind, mode, type, process, device:inode, range.
std::string holder_of_lock(int descriptor) {
  struct stat status {};
  ::fstat(descriptor, &status);
  std::array<char, 64> place{};
  std::snprintf(place.data(), place.size(), "%02x:%02x:%llu", major(status.st_dev),
                minor(status.st_dev), static_cast<unsigned long long>(status.st_ino));
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number, kind, mode, type, pid, where;
    words >> number >> kind >> mode >> type >> pid >> where;
    if (where == place.data() && kind != "->" && pid != "-1" && pid != "0") {
      return concat("process ", pid, " (", command_of(pid), ")");
    }
  }
  return "a process of another machine or container";
}

bool has_no_locks(int error) {
  return error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

}  // namespace zeromuon::formats
