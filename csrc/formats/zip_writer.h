// Writes a zip of stored, aligned records whose places are known before their bytes.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "csrc/formats/output_file.h"

namespace zeromuon::formats {

// add() all records, begin(), write() the bytes in any order, set_crc() each, finish().
// Thread: write() from any number of threads; the rest from one.
class ZipWriter {
 public:
  static constexpr uint64_t kAlignment = 64;

  ZipWriter(std::string path, bool replace);

  // Returns the record's number. Names must differ.
  int add(const std::string& name, uint64_t bytes);
  void begin();
  void write(int record, uint64_t offset, const void* data, uint64_t bytes);
  void set_crc(int record, uint32_t crc);
  void finish(bool sync_parent = true);  // as OutputFile::commit()

 private:
  struct Record {
    std::string name;
    uint64_t bytes = 0, header_offset = 0, data_offset = 0;
    uint32_t crc = 0;
    bool has_crc = false;
  };
  static void put_facts(std::string& out, const Record& r);
  std::string local_header(const Record& record) const;
  std::string directory(uint64_t offset) const;

  OutputFile file_;
  std::unordered_set<std::string> names_;
  std::vector<Record> records_;
  uint64_t end_ = 0;
};

}  // namespace zeromuon::formats
