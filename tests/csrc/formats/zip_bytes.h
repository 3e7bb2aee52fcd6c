// Zip archives made byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/formats/crc32.h"

namespace zeromuon::formats {

template <typename T>
std::string le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// A zip archive whose fields can be set wrong one by one.
struct ZipEntry {
  std::string name, data;
  uint16_t method = 0, flags = 0;
  int64_t crc = -1, bytes = -1, offset = -1;  // -1: the right ones
  std::string local_name = {};                // empty: name
};

inline std::string make_zip(const std::vector<ZipEntry>& entries, int64_t claimed_entries = -1) {
  std::string out, directory;
  for (const ZipEntry& e : entries) {
    const auto crc =
        e.crc >= 0 ? static_cast<uint32_t>(e.crc) : crc32_by_table(0, e.data.data(), e.data.size());
    const auto bytes = static_cast<uint32_t>(e.bytes >= 0 ? e.bytes : e.data.size());
    const auto offset = static_cast<uint32_t>(e.offset >= 0 ? e.offset : out.size());
    const std::string& local = e.local_name.empty() ? e.name : e.local_name;
    const std::string sizes = le(crc) + le(bytes) + le(bytes);
    out += le<uint32_t>(0x04034b50) + le<uint16_t>(20) + le(e.flags) + le(e.method) +
           le<uint32_t>(0) + sizes + le<uint16_t>(local.size()) + le<uint16_t>(0) + local + e.data;
    directory += le<uint32_t>(0x02014b50) + le<uint32_t>(0) + le(e.flags) + le(e.method) +
                 le<uint32_t>(0) + sizes + le<uint16_t>(e.name.size()) + std::string(12, '\0') +
                 le(offset) + e.name;
  }
  const auto count = static_cast<uint16_t>(claimed_entries >= 0 ? claimed_entries : entries.size());
  const auto begin = static_cast<uint32_t>(out.size());
  return out + directory + le<uint32_t>(0x06054b50) + le<uint32_t>(0) + le(count) + le(count) +
         le<uint32_t>(directory.size()) + le(begin) + le<uint16_t>(0);
}

// A torch file of this pickle and these storages.
inline std::string make_torch_file(const std::string& pickle,
                                   const std::vector<std::string>& storages = {}) {
  std::vector<ZipEntry> entries = {{"archive/data.pkl", pickle}};
  for (size_t i = 0; i < storages.size(); ++i) {
    entries.push_back({"archive/data/" + std::to_string(i), storages[i]});
  }
  entries.push_back({"archive/version", "3\n"});
  return make_zip(entries);
}

}  // namespace zeromuon::formats
