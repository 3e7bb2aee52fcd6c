// Errors of the C++ core.
//
//   require()   what a user can get wrong; becomes ValueError in Python
//   invariant() what only we can get wrong; becomes RuntimeError with "internal error"
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace zeromuon {

class ValueError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void throw_value_error(const std::string& message);
[[noreturn]] void throw_internal_error(const std::string& message);

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
void require(bool condition, const Parts&... message) {
  if (!condition) throw_value_error(concat(message...));
}

template <typename... Parts>
void invariant(bool condition, const Parts&... message) {
  if (!condition) throw_internal_error(concat(message...));
}

// The index of `name` in `names`. Raises ValueError listing the valid ones.
template <size_t N>
int index_of(const char* const (&names)[N], const std::string& name, const char* option) {
  std::string valid;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
    valid += concat(i == 0 ? "" : i + 1 == N ? " or " : ", ", names[i]);
  }
  throw_value_error(concat(option, ": expected ", valid, ", got \"", name, "\""));
}

}  // namespace zeromuon
