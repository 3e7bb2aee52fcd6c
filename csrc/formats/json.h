// Texts of JSON.
#pragma once

#include <string>
#include <string_view>

namespace zeromuon::formats {

bool is_utf8(std::string_view text);

// The text in quotes, escaped. Raises ValueError when it is no UTF-8.
std::string json_string(std::string_view text);

}  // namespace zeromuon::formats
