#include "csrc/base/check.h"

namespace zeromuon {

void throw_value_error(const std::string& message) { throw ValueError(message); }

void throw_internal_error(const std::string& message) {
  throw InternalError("internal error: " + message + " (please report this)");
}

}  // namespace zeromuon
