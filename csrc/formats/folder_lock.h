// Who may write into a folder.
#pragma once

#include <string>
#include <vector>

namespace zeromuon::formats {

// A lock of the kernel on a folder: free once its holder is gone, however it ends, and without a
// file. `zeromuon finetune` takes the same on its run. Where the file system has none, standard
// error says so and nothing is locked.
class FolderLock {
 public:
  // Makes the folder and its parents where they are missing. Raises FormatError when it cannot, and
  // when another has the lock, whom it names.
  explicit FolderLock(const std::string& folder);
  // Removes what it made and nobody filled.
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  void remove_made();

  std::vector<std::string> made_;  // the innermost last
  int descriptor_ = -1;
};

// "process 12 (its command)", the holder of a lock on this open file, by /proc/locks.
std::string holder_of_lock(int descriptor);

// Whether an error of flock(2) says that the file system has no locks.
bool has_no_locks(int error);

}  // namespace zeromuon::formats
