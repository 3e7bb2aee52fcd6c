// The one error of readers and writers of files.
#pragma once

#include <cstdint>
#include <string>

#include "csrc/base/check.h"

namespace zeromuon::formats {

// What is wrong with a file, where, and what to do about it.
struct Finding {
  std::string file;     // path; inside an archive "path: record"
  int64_t offset = -1;  // bytes from the beginning of the file; -1: about the file as a whole
  std::string expected;
  std::string got;
  std::string remedy;

  std::string text() const;
};

// Thread: any; immutable.
class FormatError : public ValueError {
 public:
  explicit FormatError(Finding finding);

  const Finding& finding() const { return finding_; }

 private:
  Finding finding_;
};

[[noreturn]] void throw_format_error(std::string file, int64_t offset, std::string expected,
                                     std::string got, std::string remedy);

// Throws what errno says about `action` on `file`; "no space left" and read-only folders get a
// remedy of their own.
[[noreturn]] void throw_system_error(const std::string& file, const std::string& action, int error);

constexpr const char* kDamaged =
    "the file is damaged or was not written completely: restore it, or use an older checkpoint";

constexpr const char* kUnknownType =
    "take a newer version that knows it, or save the tensor with another type";

}  // namespace zeromuon::formats
