// Files that exist under their name only when they are whole.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zeromuon::formats {

// Writes to `path` + ".partial" in the same folder; commit() syncs it, renames it and syncs the
// folder. Without commit() the temporary file is removed. It is locked meanwhile: one that a
// process left which is gone is taken over, one that is being written is not. Thread: write_at()
// from any number of threads; the rest from one.
class OutputFile {
 public:
  // waits: some seconds where another process writes it just now, as small files that several
  // share. Raises FormatError when the file cannot be made, when another process writes it, or when
  // `path` exists and `replace` is false.
  OutputFile(std::string path, bool replace, bool waits = false);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::string& path() const { return path_; }
  // Takes the space now, so that a full disk is told before hours of writing.
  void reserve(uint64_t bytes);
  // Also asks the kernel to begin writing back, so that commit() has little left to wait for.
  void write_at(uint64_t offset, const void* data, uint64_t bytes);
  // sync_parent: false where the caller syncs the folder once, after many files.
  void commit(bool sync_parent = true);

 private:
  void check(bool good, const char* action) const;
  bool open_alone();
  bool has_the_name() const;

  std::string path_, partial_;
  int descriptor_ = -1;
};

// Makes a folder and its parents; sync: on disk, else the caller syncs what they are in. Returns
// those that were missing, the innermost last. Raises FormatError.
std::vector<std::string> make_folders(const std::string& path, bool sync = false);
void sync_folder(const std::string& path);
void write_text(const std::string& path, const std::string& text, bool replace);

}  // namespace zeromuon::formats
