#include "csrc/formats/json.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {
namespace {

using Library = nlohmann::json;

// The library's parser keeps one bit per open level; the levels are bounded here.
class Adapter : public Library::json_sax_t {
 public:
  Adapter(const std::string& file, int64_t file_offset, int depth, JsonEvents& events)
      : file_(file), file_offset_(file_offset), limit_(depth), events_(events) {}

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  bool number_integer(int64_t) override { return other("a negative number"); }
  bool number_unsigned(uint64_t value) override {
    events_.integer(value);
    return true;
  }
  bool number_float(double, const std::string&) override { return other("a real number"); }
  bool string(std::string& text) override {
    events_.string(std::move(text));
    return true;
  }
  bool binary(Library::binary_t&) override { return other("binary data"); }
  bool start_object(size_t) override {
    open();
    events_.begin_object();
    return true;
  }
  bool key(std::string& text) override {
    events_.key(std::move(text));
    return true;
  }
  bool end_object() override {
    --depth_;
    events_.end_object();
    return true;
  }
  bool start_array(size_t) override {
    open();
    events_.begin_array();
    return true;
  }
  bool end_array() override {
    --depth_;
    events_.end_array();
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Library::exception&) override {
    throw_format_error(file_, file_offset_ + static_cast<int64_t>(position), "JSON",
                       "something else", kDamaged);
  }

 private:
  bool other(const char* what) {
    events_.other(what);
    return true;
  }
  void open() {
    if (++depth_ <= limit_) return;
    throw_format_error(file_, file_offset_, concat("JSON of at most ", limit_, " levels"), "more",
                       kDamaged);
  }

  const std::string& file_;
  int64_t file_offset_;
  int limit_, depth_ = 0;
  JsonEvents& events_;
};

}  // namespace

void read_json(std::string_view text, const std::string& file, int64_t file_offset, int depth,
               JsonEvents& events) {
  Adapter adapter(file, file_offset, depth, events);
  Library::sax_parse(text.begin(), text.end(), &adapter);
}

std::string json_string(std::string_view text) {
  try {
    return Library(text).dump();
  } catch (const Library::type_error&) {
    throw_value_error(concat("a text of ", text.size(), " bytes that is no UTF-8: \"",
                             Library(text).dump(-1, ' ', true, Library::error_handler_t::replace),
                             "\"; JSON cannot hold it"));
  }
}

}  // namespace zeromuon::formats
