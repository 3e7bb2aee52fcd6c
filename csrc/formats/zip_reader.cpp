#include "csrc/formats/zip_reader.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "csrc/formats/crc32.h"
#include "csrc/formats/format_error.h"
#include "csrc/formats/zip_layout.h"

namespace zeromuon::formats {
namespace {

using namespace zip;

constexpr uint64_t kMaxDirectoryBytes = 256ull << 20;  // about a million records

template <typename T>
T number_at(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof value);  // the hosts that are supported are little-endian
  return value;
}

// Where the central directory lies, and how many records it has.
struct Directory {
  uint64_t offset = 0, bytes = 0, records = 0;
};

class DirectoryReader {
 public:
  explicit DirectoryReader(const InputFile& file) : file_(file) {}

  std::vector<ZipRecord> read() {
    const Directory directory = locate();
    check(
        directory.records <= directory.bytes / kCentralBytes && directory.offset <= end_ &&
            directory.bytes <= end_ - directory.offset,
        end_, "a directory of records inside the file",
        concat(directory.records, " records in ", directory.bytes, " bytes at ", directory.offset));
    check(directory.bytes <= kMaxDirectoryBytes, end_, "a directory of at most 256 MiB",
          concat(directory.bytes, " bytes"));
    const std::vector<uint8_t> bytes = file_.read(directory.offset, directory.bytes);
    read_records(directory, bytes);
    check_overlaps(directory.offset);
    return std::move(records_);
  }

 private:
  void check(bool good, uint64_t offset, const std::string& expected, const std::string& got,
             const char* remedy = kDamaged) const {
    if (good) return;
    throw_format_error(file_.path(), static_cast<int64_t>(offset), expected, got, remedy);
  }

  // The end record is the last thing in the file, before a comment of at most 65535 bytes.
  Directory locate() {
    check(file_.size() >= kEndBytes, 0, "a zip archive", concat(file_.size(), " bytes"));
    const uint64_t tail_bytes = std::min<uint64_t>(file_.size(), kEndBytes + 65535);
    const uint64_t tail_offset = file_.size() - tail_bytes;
    const std::vector<uint8_t> tail = file_.read(tail_offset, tail_bytes);
    for (uint64_t at = tail_bytes - kEndBytes + 1; at-- > 0;) {
      const uint8_t* end = tail.data() + at;
      if (number_at<uint32_t>(end) != kEnd) continue;
      if (at + kEndBytes + number_at<uint16_t>(end + 20) != tail_bytes) continue;
      end_ = tail_offset + at;
      return directory_of(end);
    }
    throw_format_error(file_.path(), static_cast<int64_t>(file_.size()),
                       "the end record of a zip archive", "none", kDamaged);
  }

  Directory directory_of(const uint8_t* end) {
    const auto disk = number_at<uint16_t>(end + 4), records = number_at<uint16_t>(end + 10);
    const auto bytes = number_at<uint32_t>(end + 12), offset = number_at<uint32_t>(end + 16);
    if (end_ >= kLocatorBytes) {
      const std::vector<uint8_t> locator = file_.read(end_ - kLocatorBytes, kLocatorBytes);
      if (number_at<uint32_t>(locator.data()) == kLocator64) {
        return directory64(number_at<uint64_t>(locator.data() + 8));
      }
    }
    check(disk == 0 && records != 0xffff && bytes != 0xffffffff && offset != 0xffffffff, end_,
          "an archive in one file, with a ZIP64 record where one is needed", "neither");
    return {offset, bytes, records};
  }

  Directory directory64(uint64_t at) {
    const uint64_t locator = end_ - kLocatorBytes;
    check(at <= locator && locator - at >= kEnd64Bytes, locator,
          "a ZIP64 end record before its locator", concat("offset ", at));
    const std::vector<uint8_t> end = file_.read(at, kEnd64Bytes);
    check(number_at<uint32_t>(end.data()) == kEnd64, at, "a ZIP64 end record", "other bytes");
    end_ = at;
    return {number_at<uint64_t>(end.data() + 48), number_at<uint64_t>(end.data() + 40),
            number_at<uint64_t>(end.data() + 32)};
  }

  void read_records(const Directory& directory, const std::vector<uint8_t>& bytes) {
    records_.reserve(directory.records);
    uint64_t at = 0;
    for (uint64_t i = 0; i < directory.records; ++i) {
      check(bytes.size() - at >= kCentralBytes, directory.offset + at, "another record",
            "the end of the directory");
      at += read_record(directory.offset + at, bytes.data() + at, bytes.size() - at);
    }
    check(at == bytes.size(), directory.offset + at, "the end of the directory", "more bytes");
  }

  // Returns how many bytes of the directory the record takes.
  uint64_t read_record(uint64_t offset, const uint8_t* data, uint64_t left) {
    check(number_at<uint32_t>(data) == kCentral, offset, "a directory record", "other bytes");
    const auto flags = number_at<uint16_t>(data + 8), method = number_at<uint16_t>(data + 10);
    const uint64_t name_bytes = number_at<uint16_t>(data + 28),
                   extra_bytes = number_at<uint16_t>(data + 30),
                   comment_bytes = number_at<uint16_t>(data + 32);
    const uint64_t all = kCentralBytes + name_bytes + extra_bytes + comment_bytes;
    check(all <= left, offset, "a record inside the directory", concat(all, " bytes of ", left));
    ZipRecord record;
    record.name.assign(reinterpret_cast<const char*>(data) + kCentralBytes, name_bytes);
    check_name(record.name, offset);
    check((flags & 1) == 0 && method == 0, offset, "records that are stored",
          "\"" + record.name + "\", which is compressed or encrypted",
          "save the file again with torch.save");
    record.crc = number_at<uint32_t>(data + 16);
    const uint64_t packed = number_at<uint32_t>(data + 20);
    record.bytes = number_at<uint32_t>(data + 24);
    uint64_t local = number_at<uint32_t>(data + 42);
    uint64_t packed64 = packed;
    read_zip64(offset, data + kCentralBytes + name_bytes, extra_bytes, record.bytes, packed64,
               local);
    check(packed64 == record.bytes, offset, "a stored size equal to the real one",
          concat(packed64, " and ", record.bytes));
    locals_.push_back(local);
    records_.push_back(std::move(record));
    return all;
  }

  void check_name(const std::string& name, uint64_t offset) const {
    const std::string_view text = name;
    bool good = !text.empty() && text.front() != '/' && text.size() <= 4096;
    for (const char c : text) good = good && static_cast<uint8_t>(c) >= 0x20 && c != '\\';
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find('/', begin), text.size());
      good = good && text.substr(begin, end - begin) != "..";
      begin = end + 1;
    }
    check(good, offset, "a record name that stays inside a folder",
          concat("a name of ", name.size(), " bytes that does not"));
  }

  // Fields that are all ones stand in the extra field, in this order.
  void read_zip64(uint64_t offset, const uint8_t* extra, uint64_t bytes, uint64_t& real,
                  uint64_t& packed, uint64_t& local) const {
    uint64_t* fields[] = {&real, &packed, &local};
    const bool needed = std::any_of(std::begin(fields), std::end(fields),
                                    [](const uint64_t* f) { return *f == 0xffffffff; });
    if (!needed) return;
    for (uint64_t at = 0; bytes - at >= 4;) {
      const auto id = number_at<uint16_t>(extra + at);
      const uint64_t size = number_at<uint16_t>(extra + at + 2);
      check(size <= bytes - at - 4, offset, "an extra field inside the record", "a longer one");
      uint64_t next = at + 4;
      if (id != kZip64Extra) {
        at = next + size;
        continue;
      }
      for (uint64_t* field : fields) {
        if (*field != 0xffffffff) continue;
        check(next + 8 <= at + 4 + size, offset, "the ZIP64 sizes of the record", "fewer bytes");
        *field = number_at<uint64_t>(extra + next);
        next += 8;
      }
      return;
    }
    check(false, offset, "a ZIP64 extra field", "none");
  }

  // Local headers repeat the name and say where the data begin. Sorted by place, each record must
  // end before the next one's header.
  void check_overlaps(uint64_t directory_offset) {
    std::vector<size_t> order(records_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return locals_[a] < locals_[b]; });
    uint64_t end = 0;
    for (const size_t i : order) {
      check(locals_[i] >= end, std::min<uint64_t>(locals_[i], INT64_MAX),
            "records that do not overlap", "\"" + records_[i].name + "\" inside another one");
      end = read_local(records_[i], locals_[i], directory_offset);
    }
  }

  uint64_t read_local(ZipRecord& record, uint64_t offset, uint64_t limit) {
    const auto where = std::min<uint64_t>(offset, INT64_MAX);
    check(offset <= limit && limit - offset >= kLocalBytes + record.name.size(), where,
          "the record \"" + record.name + "\" before the directory", concat("offset ", offset));
    const std::vector<uint8_t> header = file_.read(offset, kLocalBytes + record.name.size());
    const uint64_t name_bytes = number_at<uint16_t>(header.data() + 26);
    const uint64_t extra_bytes = number_at<uint16_t>(header.data() + 28);
    check(number_at<uint32_t>(header.data()) == kLocal && name_bytes == record.name.size() &&
              std::memcmp(header.data() + kLocalBytes, record.name.data(), name_bytes) == 0,
          offset, "the header of \"" + record.name + "\"", "other bytes");
    record.data_offset = offset + kLocalBytes + name_bytes + extra_bytes;
    check(record.data_offset <= limit && record.bytes <= limit - record.data_offset, offset,
          concat("the ", record.bytes, " bytes of \"", record.name, "\" before the directory at ",
                 limit),
          concat("data that begin at ", record.data_offset));
    return record.data_offset + record.bytes;
  }

  const InputFile& file_;
  uint64_t end_ = 0;  // what the directory must end before
  std::vector<uint64_t> locals_;
  std::vector<ZipRecord> records_;
};

}  // namespace

ZipReader::ZipReader(std::shared_ptr<const InputFile> file) : file_(std::move(file)) {
  records_ = DirectoryReader(*file_).read();
  for (size_t i = 0; i < records_.size(); ++i) {
    if (index_.emplace(records_[i].name, i).second) continue;
    throw_format_error(file_->path(), static_cast<int64_t>(records_[i].data_offset),
                       "record names that differ", "two records \"" + records_[i].name + "\"",
                       kDamaged);
  }
}

const ZipRecord* ZipReader::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &records_[found->second];
}

std::vector<uint8_t> ZipReader::read(const ZipRecord& record, uint64_t limit_bytes) const {
  if (record.bytes > limit_bytes) {
    throw_format_error(where(record), static_cast<int64_t>(record.data_offset),
                       concat("at most ", limit_bytes, " bytes"), concat(record.bytes, " bytes"),
                       "this is not a checkpoint of tensors");
  }
  std::vector<uint8_t> bytes = file_->read(record.data_offset, record.bytes);
  const uint32_t crc = crc32(0, bytes.data(), bytes.size());
  if (crc != record.crc) {
    throw_format_error(where(record), static_cast<int64_t>(record.data_offset),
                       concat("CRC ", record.crc), concat("CRC ", crc), kDamaged);
  }
  return bytes;
}

}  // namespace zeromuon::formats
