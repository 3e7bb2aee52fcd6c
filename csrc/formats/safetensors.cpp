#include "csrc/formats/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "csrc/formats/format_error.h"
#include "csrc/formats/torch_file.h"

namespace zeromuon::formats {
namespace {

constexpr size_t kMaxDimensions = 64;

// Raises FormatError for what is no JSON or no UTF-8, and for text after the value. Keys may
// repeat.
class JsonReader : public nlohmann::json::json_sax_t {
 public:
  // text: of the file, from `file_offset` on.
  JsonReader(const std::string& file, int64_t file_offset)
      : file_(file), file_offset_(file_offset) {}

  void read(std::string_view text) { nlohmann::json::sax_parse(text.begin(), text.end(), this); }

  virtual bool other(const char* what) = 0;
  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  bool number_integer(int64_t) override { return other("a negative number"); }
  bool number_float(double, const std::string&) override { return other("a real number"); }
  bool binary(nlohmann::json::binary_t&) override { return other("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw_format_error(file_, file_offset_ + static_cast<int64_t>(position), "JSON",
                       "something else", kDamaged);
  }

 protected:
  const std::string& file_;

 private:
  int64_t file_offset_;
};

// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {...}}
class HeaderReader : public JsonReader {
 public:
  HeaderReader(const std::string& file, uint64_t data_offset)
      : JsonReader(file, 8), data_offset_(data_offset) {}

  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(size_t) override {
    check(!in_array_ && level_ < 2 && (level_ == 0 || key_taken_), "no object here", "one");
    ++level_;
    if (level_ == 2 && !in_metadata_) entry_ = {};
    seen_ = 0;
    return true;
  }

  bool end_object() override {
    if (level_ == 2 && !in_metadata_) finish_entry();
    in_metadata_ = false;
    --level_;
    return true;
  }

  bool start_array(size_t) override {
    check(level_ == 2 && !in_metadata_ && !in_array_ &&
              (field_ == "shape" || field_ == "data_offsets"),
          "no array here", "one");
    in_array_ = true;
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    if (field_ == "shape") {
      entry_.shape = numbers_;
      return true;
    }
    check(numbers_.size() == 2, "two data_offsets", concat(numbers_.size()));
    begin_ = numbers_[0];
    end_ = numbers_[1];
    return true;
  }

  bool key(std::string& text) override {
    key_taken_ = true;
    if (level_ == 1) {
      check(text.size() <= kMaxTensorNameBytes, "tensor names of at most 64 KiB",
            concat(text.size(), " bytes"));
      in_metadata_ = text == "__metadata__";
      check(names_.insert(text).second, "tensor names that differ", "\"" + text + "\" twice");
      name_ = std::move(text);
    } else {
      field_ = std::move(text);
      if (!in_metadata_) see(field_);
    }
    return true;
  }

  bool string(std::string& text) override {
    check(level_ == 2 && !in_array_, "no string here", "one");
    if (in_metadata_) {
      check(metadata.emplace(field_, std::move(text)).second, "keys that differ",
            "\"" + field_ + "\" twice");
      return true;
    }
    check(field_ == "dtype", "a string only as dtype", "\"" + field_ + "\"");
    if (parse_safetensors_name(text, entry_.type)) return true;
    throw_format_error(file_, 8, "an element type that this version knows",
                       "\"" + text + "\" for \"" + name_ + "\"", kUnknownType);
  }

  bool number_unsigned(uint64_t value) override {
    check(in_array_, "a number only in an array", "one");
    check(numbers_.size() < kMaxDimensions && value <= INT64_MAX, "at most 64 sizes below 2^63",
          "more");
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool other(const char* what) override {
    check(false, "text or a size", what);
    return true;
  }

 private:
  void check(bool good, const std::string& expected, const std::string& got) const {
    if (!good) throw_format_error(file_, 8, "a header with " + expected, got, kDamaged);
  }

  void see(const std::string& field) {
    const int bit = field == "dtype" ? 1 : field == "shape" ? 2 : field == "data_offsets" ? 4 : 0;
    check(bit != 0 && (seen_ & bit) == 0, "dtype, shape and data_offsets once each",
          "\"" + field + "\"");
    seen_ |= bit;
  }

  void finish_entry() {
    check(seen_ == 7, "dtype, shape and data_offsets", "fewer for \"" + name_ + "\"");
    check(begin_ <= end_, "data_offsets in order", "others for \"" + name_ + "\"");
    int64_t bytes = numel_of(entry_.shape);
    const bool fits = bytes >= 0 && !__builtin_mul_overflow(bytes, size_of(entry_.type), &bytes);
    check(fits && bytes == end_ - begin_, "data_offsets of the size of the shape",
          concat(end_ - begin_, " bytes for \"", name_, "\""));
    entry_.name = name_;
    entry_.bytes = static_cast<uint64_t>(bytes);
    entry_.file_offset = data_offset_ + static_cast<uint64_t>(begin_);
    entries.push_back(entry_);
  }

  uint64_t data_offset_;
  int level_ = 0, seen_ = 0;
  bool in_array_ = false, in_metadata_ = false, key_taken_ = false;
  std::string name_, field_;
  std::unordered_set<std::string> names_;
  std::vector<int64_t> numbers_;
  int64_t begin_ = 0, end_ = 0;
  SafetensorsEntry entry_;
};

// {"metadata": {...}, "weight_map": {"name": "file", ...}}
class IndexReader : public JsonReader {
 public:
  explicit IndexReader(const std::string& file) : JsonReader(file, 0) {}

  std::map<std::string, std::string> files;
  bool found = false;

  bool start_object(size_t) override {
    open();
    ++level_;
    if (level_ != 2 || key_ != "weight_map") return true;
    check(!found, "one weight_map", "two");
    return in_map_ = found = true;
  }
  bool end_object() override {
    --depth_;
    if (level_-- == 2) in_map_ = false;
    return true;
  }
  bool start_array(size_t) override {
    open();
    return other("an array");
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(std::string& text) override {
    key_ = std::move(text);
    return true;
  }
  bool string(std::string& text) override {
    if (!in_map_) return true;
    check(is_file_name(text), "the name of a file in the same folder",
          concat("\"", text.substr(0, text.find('\0')).substr(0, 200), "\""));
    check(key_.size() <= kMaxTensorNameBytes, "tensor names of at most 64 KiB",
          concat(key_.size(), " bytes"));
    check(files.emplace(key_, std::move(text)).second, "tensor names that differ",
          "\"" + key_ + "\" twice");
    return true;
  }
  bool number_unsigned(uint64_t) override { return other("a number"); }
  bool other(const char* what) override {
    check(!in_map_, "the name of a file", what);
    return true;
  }

 private:
  void check(bool good, const std::string& expected, const std::string& got) const {
    if (!good) throw_format_error(file_, -1, expected, got, kDamaged);
  }
  // The library's parser keeps one bit per open level; the levels are bounded here.
  void open() {
    constexpr int kMaxDepth = 8;
    if (++depth_ <= kMaxDepth) return;
    throw_format_error(file_, 0, concat("JSON of at most ", kMaxDepth, " levels"), "more",
                       kDamaged);
  }

  int level_ = 0, depth_ = 0;  // of objects; of all
  bool in_map_ = false;
  std::string key_;
};

void check_no_holes(const std::string& file, std::vector<SafetensorsEntry>& entries,
                    uint64_t data_offset, uint64_t file_bytes) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.file_offset, a.bytes) < std::pair(b.file_offset, b.bytes);
  });
  uint64_t end = data_offset;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.file_offset != end) {
      throw_format_error(file, static_cast<int64_t>(end),
                         "tensors one after the other, without holes or overlaps",
                         concat("\"", entry.name, "\" at ", entry.file_offset), kDamaged);
    }
    if (entry.bytes > file_bytes - end) {
      throw_format_error(file, static_cast<int64_t>(end),
                         concat(entry.bytes, " bytes of \"", entry.name, "\""),
                         concat(file_bytes - end), kDamaged);
    }
    end += entry.bytes;
  }
  if (end != file_bytes) {
    throw_format_error(file, static_cast<int64_t>(end), "the end of the file",
                       concat(file_bytes - end, " more bytes"), kDamaged);
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(std::make_shared<InputFile>(path)) {
  uint64_t header_bytes = 0;
  file_->read(0, &header_bytes, sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_->size() - 8 || header_bytes < 2) {
    throw_format_error(path, 0, "the length of a header inside the file, at most 100 MB",
                       concat(header_bytes, " in ", file_->size(), " bytes"), kDamaged);
  }
  const std::vector<uint8_t> header = file_->read(8, header_bytes);
  if (header[0] != '{') throw_format_error(path, 8, "{", "another byte", kDamaged);
  HeaderReader reader(path, 8 + header_bytes);
  reader.read({reinterpret_cast<const char*>(header.data()), header.size()});
  entries_ = std::move(reader.entries);
  metadata_ = std::move(reader.metadata);
  check_no_holes(path, entries_, 8 + header_bytes, file_->size());
}

std::map<std::string, std::string> read_safetensors_index(const std::string& path) {
  IndexReader reader(path);
  reader.read(read_text(path, SafetensorsFile::kMaxHeaderBytes));
  if (!reader.found) throw_format_error(path, -1, "a weight_map", "none", kDamaged);
  return std::move(reader.files);
}

}  // namespace zeromuon::formats
