#include "csrc/formats/zip_writer.h"

#include <algorithm>
#include <utility>

#include "csrc/formats/format_error.h"
#include "csrc/formats/zip_layout.h"

namespace zeromuon::formats {
namespace {

using namespace zip;

constexpr uint64_t kMax32 = 0xffffffff;
constexpr uint16_t kUtf8 = 0x0800, kVersion = 45, kStored = 0, kNoTime = 0;
constexpr uint16_t kPaddingExtra = 0x4246;  // torch's "FB"
constexpr uint16_t kDate = 0x21;  // 1980-01-01, the first: outputs do not depend on the day

// The values as they lie in memory, one after the other.
template <typename... Ts>
void put(std::string& out, Ts... values) {
  (out.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
}

uint16_t short_of(uint64_t value) { return static_cast<uint16_t>(value); }
uint32_t clipped(uint64_t value) { return static_cast<uint32_t>(std::min(value, kMax32)); }

// A local header whose record is larger than 4 GiB has both sizes in 20 bytes of extra field.
uint64_t zip64_bytes(uint64_t bytes) { return bytes >= kMax32 ? 20 : 0; }

}  // namespace

ZipWriter::ZipWriter(std::string path, bool replace) : file_(std::move(path), replace) {}

int ZipWriter::add(const std::string& name, uint64_t bytes) {
  invariant(names_.insert(name).second, "two zip records \"", name, "\"");
  Record record{name, bytes, end_, 0, 0, false};
  const uint64_t fixed = end_ + kLocalBytes + name.size() + zip64_bytes(bytes);
  // The padding is an extra field of its own, with a head of 4 bytes.
  record.data_offset = (fixed + 4 + kAlignment - 1) / kAlignment * kAlignment;
  end_ = record.data_offset + bytes;
  records_.push_back(std::move(record));
  return static_cast<int>(records_.size()) - 1;
}

void ZipWriter::begin() { file_.reserve(end_); }

void ZipWriter::write(int record, uint64_t offset, const void* data, uint64_t bytes) {
  const Record& r = records_.at(record);
  invariant(offset <= r.bytes && bytes <= r.bytes - offset, "write beyond zip record \"", r.name,
            "\"");
  file_.write_at(r.data_offset + offset, data, bytes);
}

void ZipWriter::set_crc(int record, uint32_t crc) {
  records_.at(record).crc = crc;
  records_.at(record).has_crc = true;
}

// What local header and directory say alike of a record.
void ZipWriter::put_facts(std::string& out, const Record& r) {
  put(out, kUtf8, kStored, kNoTime, kDate, r.crc, clipped(r.bytes), clipped(r.bytes),
      short_of(r.name.size()));
}

std::string ZipWriter::local_header(const Record& r) const {
  std::string out;
  put(out, kLocal, kVersion);
  put_facts(out, r);
  const uint64_t fixed = r.header_offset + kLocalBytes + r.name.size();
  put(out, short_of(r.data_offset - fixed));
  out += r.name;
  if (zip64_bytes(r.bytes) > 0) put(out, kZip64Extra, uint16_t{16}, r.bytes, r.bytes);
  const uint64_t padding = r.data_offset - r.header_offset - out.size() - 4;
  put(out, kPaddingExtra, short_of(padding));
  out.append(padding, 'Z');
  return out;
}

std::string ZipWriter::directory(uint64_t offset) const {
  std::string out;
  for (const Record& r : records_) {
    std::string extra;
    if (r.bytes >= kMax32) put(extra, r.bytes, r.bytes);
    if (r.header_offset >= kMax32) put(extra, r.header_offset);
    put(out, kCentral, kVersion, kVersion);
    put_facts(out, r);
    put(out, short_of(extra.empty() ? 0 : extra.size() + 4));
    out.append(2 + 2 + 2 + 4, '\0');  // comment, disk, attributes
    put(out, clipped(r.header_offset));
    out += r.name;
    if (!extra.empty()) put(out, kZip64Extra, short_of(extra.size()));
    out += extra;
  }
  const uint64_t bytes = out.size(), end = offset + bytes, count = records_.size();
  constexpr uint64_t kRestOfEnd64 = 44;
  constexpr uint32_t kDisk = 0, kDisks = 1;
  put(out, kEnd64, kRestOfEnd64, kVersion, kVersion, kDisk, kDisk, count, count, bytes, offset);
  put(out, kLocator64, kDisk, end, kDisks);
  const uint16_t count16 = short_of(std::min<uint64_t>(count, 0xffff)), no_comment = 0;
  put(out, kEnd, kDisk, count16, count16, clipped(bytes), clipped(offset), no_comment);
  return out;
}

void ZipWriter::finish(bool sync_parent) {
  for (const Record& record : records_) {
    invariant(record.has_crc, "zip record \"", record.name, "\" has no CRC");
    const std::string header = local_header(record);
    file_.write_at(record.header_offset, header.data(), header.size());
  }
  const std::string tail = directory(end_);
  file_.write_at(end_, tail.data(), tail.size());
  file_.commit(sync_parent);
}

}  // namespace zeromuon::formats
