// Zip archives of stored (uncompressed) records, as torch.save writes them; ZIP64 included.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/formats/input_file.h"

namespace zeromuon::formats {

struct ZipRecord {
  std::string name;
  uint64_t data_offset = 0;  // in the file
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

// Checks on opening: the directory and every local header lie inside the file, no two records
// overlap, names are unique and stay inside a folder, nothing is compressed or encrypted. CRCs are
// checked by check_crc(), since that reads everything.
// Thread: any, once constructed.
class ZipReader {
 public:
  // Raises FormatError.
  explicit ZipReader(std::shared_ptr<const InputFile> file);

  const InputFile& file() const { return *file_; }
  const std::vector<ZipRecord>& records() const { return records_; }
  const ZipRecord* find(std::string_view name) const;  // null when absent
  // "path: record", for errors.
  std::string where(const ZipRecord& record) const { return file_->path() + ": " + record.name; }

  // The bytes of a record, CRC checked. Raises FormatError; also when larger than `limit_bytes`.
  std::vector<uint8_t> read(const ZipRecord& record, uint64_t limit_bytes) const;

 private:
  std::shared_ptr<const InputFile> file_;
  std::vector<ZipRecord> records_;
  std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace zeromuon::formats
