#include "csrc/formats/zip_writer.h"

#include <algorithm>
#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {
namespace {

constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kMax32 = 0xffffffff;
constexpr uint16_t kUtf8 = 0x0800, kVersion = 45, kPaddingExtra = 0x4246;  // torch's "FB"
constexpr uint16_t kDate = 0x21;  // 1980-01-01, the first: outputs do not depend on the day

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

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
  put<uint16_t>(out, kUtf8);
  put<uint16_t>(out, 0);  // stored
  put<uint16_t>(out, 0);
  put<uint16_t>(out, kDate);
  put<uint32_t>(out, r.crc);
  put<uint32_t>(out, clipped(r.bytes));
  put<uint32_t>(out, clipped(r.bytes));
  put<uint16_t>(out, static_cast<uint16_t>(r.name.size()));
}

std::string ZipWriter::local_header(const Record& r) const {
  std::string out;
  put<uint32_t>(out, 0x04034b50);
  put<uint16_t>(out, kVersion);
  put_facts(out, r);
  const uint64_t fixed = r.header_offset + kLocalBytes + r.name.size();
  put<uint16_t>(out, static_cast<uint16_t>(r.data_offset - fixed));
  out += r.name;
  if (zip64_bytes(r.bytes) > 0) {
    put<uint16_t>(out, 1);
    put<uint16_t>(out, 16);
    put<uint64_t>(out, r.bytes);
    put<uint64_t>(out, r.bytes);
  }
  const uint64_t padding = r.data_offset - r.header_offset - out.size() - 4;
  put<uint16_t>(out, kPaddingExtra);
  put<uint16_t>(out, static_cast<uint16_t>(padding));
  out.append(padding, 'Z');
  return out;
}

std::string ZipWriter::directory(uint64_t offset) const {
  std::string out;
  for (const Record& r : records_) {
    std::string extra;
    if (r.bytes >= kMax32) {
      put<uint64_t>(extra, r.bytes);
      put<uint64_t>(extra, r.bytes);
    }
    if (r.header_offset >= kMax32) put<uint64_t>(extra, r.header_offset);
    put<uint32_t>(out, 0x02014b50);
    put<uint16_t>(out, kVersion);
    put<uint16_t>(out, kVersion);
    put_facts(out, r);
    put<uint16_t>(out, static_cast<uint16_t>(extra.empty() ? 0 : extra.size() + 4));
    out.append(2 + 2 + 2 + 4, '\0');  // comment, disk, attributes
    put<uint32_t>(out, clipped(r.header_offset));
    out += r.name;
    if (extra.empty()) continue;
    put<uint16_t>(out, 1);
    put<uint16_t>(out, static_cast<uint16_t>(extra.size()));
    out += extra;
  }
  const uint64_t bytes = out.size(), end = offset + bytes, count = records_.size();
  put<uint32_t>(out, 0x06064b50);
  put<uint64_t>(out, 44);
  put<uint16_t>(out, kVersion);
  put<uint16_t>(out, kVersion);
  put<uint64_t>(out, 0);
  put<uint64_t>(out, count);
  put<uint64_t>(out, count);
  put<uint64_t>(out, bytes);
  put<uint64_t>(out, offset);
  put<uint32_t>(out, 0x07064b50);
  put<uint32_t>(out, 0);
  put<uint64_t>(out, end);
  put<uint32_t>(out, 1);
  put<uint32_t>(out, 0x06054b50);
  put<uint32_t>(out, 0);
  const auto count16 = static_cast<uint16_t>(std::min<uint64_t>(count, 0xffff));
  put<uint16_t>(out, count16);
  put<uint16_t>(out, count16);
  put<uint32_t>(out, clipped(bytes));
  put<uint32_t>(out, clipped(offset));
  put<uint16_t>(out, 0);
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
