// Files that exist under their name only when they are whole.
#pragma once

#include <cstdint>
#include <string>

namespace zeromuon::formats {

// Writes to `path` + ".partial" in the same folder; commit() syncs it, renames it and syncs the
// folder. Without commit() the temporary file is removed.
// Thread: write_at() from any number of threads; the rest from one.
class OutputFile {
 public:
  // Raises FormatError when the file cannot be made, or when `path` exists and `replace` is false.
  OutputFile(std::string path, bool replace);
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

  std::string path_, partial_;
  int descriptor_ = -1;
};

// Makes a folder and its parents. Raises FormatError.
void make_folders(const std::string& path);
void sync_folder(const std::string& path);
void write_text(const std::string& path, const std::string& text, bool replace);

}  // namespace zeromuon::formats
