#include "csrc/formats/format_error.h"

#include <cerrno>
#include <cstring>
#include <utility>

namespace zeromuon::formats {
namespace {

const char* remedy_of(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "make room on that disk, or write elsewhere; --resume goes on with what is finished";
    case EFBIG:
      return "raise the limit of the size of files (ulimit -f), or write to another file system";
    case ENOTDIR:
    case EEXIST:
    case EISDIR:
      return "a file stands where a folder is needed, or the other way round: choose another path";
    case ENAMETOOLONG:
      return "choose a shorter path; names of files have at most 255 bytes";
    case EROFS:
    case EACCES:
    case EPERM:
      return "choose a place that this user may use";
    case ENOENT:
      return "check the path";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files: ulimit -n";
    case EIO:
      return "the disk reports an error: copy the file from elsewhere";
    default:
      return "see the message of the system";
  }
}

}  // namespace

std::string Finding::text() const {
  std::string out = file;
  if (offset >= 0) out += concat(": byte ", offset);
  out += ": expected " + expected + ", got " + got;
  if (!remedy.empty()) out += "; " + remedy;
  return out;
}

FormatError::FormatError(Finding finding)
    : ValueError(finding.text()), finding_(std::move(finding)) {}

void throw_format_error(std::string file, int64_t offset, std::string expected, std::string got,
                        std::string remedy) {
  throw FormatError(
      {std::move(file), offset, std::move(expected), std::move(got), std::move(remedy)});
}

void throw_system_error(const std::string& file, const std::string& action, int error) {
  throw_format_error(file, -1, "to " + action, std::strerror(error), remedy_of(error));
}

}  // namespace zeromuon::formats
