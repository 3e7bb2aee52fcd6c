#include "csrc/formats/json.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "csrc/base/check.h"

namespace zeromuon::formats {

using Library = nlohmann::json;

bool is_utf8(std::string_view text) {
  const auto is_ascii = [](char c) { return static_cast<uint8_t>(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), is_ascii)) return true;
  try {
    Library(text).dump();
    return true;
  } catch (const Library::type_error&) {
    return false;
  }
}

std::string json_string(std::string_view text) {
  const Library value(text);
  try {
    return value.dump();
  } catch (const Library::type_error&) {
    throw_value_error(concat("a text of ", text.size(), " bytes that is no UTF-8: \"",
                             value.dump(-1, ' ', true, Library::error_handler_t::replace),
                             "\"; JSON cannot hold it"));
  }
}

}  // namespace zeromuon::formats
