// JSON as a stream of events, read strictly and in bounds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace zeromuon::formats {

// What a reader of JSON is told. Each may throw.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void begin_object() = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
  virtual void key(std::string text) = 0;
  virtual void string(std::string text) = 0;
  virtual void integer(uint64_t value) = 0;
  virtual void other(std::string_view what) = 0;  // null, a boolean, a real or negative number
};

// Raises FormatError naming `file` and an offset from `file_offset`: invalid JSON or UTF-8, more
// than `depth` levels, text after the value. Keys may repeat: that is the reader's to refuse.
void read_json(std::string_view text, const std::string& file, int64_t file_offset, int depth,
               JsonEvents& events);

// The text in quotes, escaped. Raises ValueError when it is no UTF-8.
std::string json_string(std::string_view text);

}  // namespace zeromuon::formats
