#include "zero3/convert/crcs.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "csrc/formats/crc32.h"
#include "csrc/formats/zip_reader.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

struct Record {
  std::string where;
  uint64_t offset = 0;
  uint32_t crc = 0;
};

}  // namespace

CrcCheck::Wanted* CrcCheck::wanted(const std::shared_ptr<const InputFile>& file) {
  if (file->path().ends_with(".safetensors")) return nullptr;
  const auto [at, added] = numbers_.emplace(file.get(), files_.size());
  if (added) files_.push_back({file, false, {}});
  return &files_[at->second];
}

void CrcCheck::add(const std::shared_ptr<const InputFile>& file) {
  if (Wanted* known = wanted(file)) known->all = true;
}

void CrcCheck::add(const TensorSource& source) {
  for (const ByteRange& range : source.ranges) {
    Wanted* known = wanted(range.file);
    if (known == nullptr) continue;
    uint64_t& end = known->ranges[range.offset];
    end = std::max(end, range.offset + range.bytes);
  }
}

std::vector<formats::Finding> CrcCheck::run(const RunOptions& run, int64_t& bytes_read) const {
  std::vector<Block> blocks;
  std::vector<Record> records;
  for (const Wanted& wanted : files_) {
    const formats::ZipReader zip(wanted.file);
    for (const formats::ZipRecord& record : zip.records()) {
      // A range lies in one record, so the last that begins before its end tells.
      const auto after = wanted.ranges.lower_bound(record.data_offset + record.bytes);
      const bool touched = after != wanted.ranges.begin() &&
                           std::prev(after)->second > record.data_offset && record.bytes > 0;
      if (!wanted.all && !touched) continue;
      const TensorSource bytes =
          source_at(ElementType::kUInt8, {static_cast<int64_t>(record.bytes)},
                    {wanted.file, record.data_offset, record.bytes});
      blocks.push_back(block_of(bytes, bytes.type));
      records.push_back({zip.where(record), record.data_offset, record.crc});
    }
  }
  std::vector<std::map<int64_t, std::pair<uint32_t, int64_t>>> crcs(blocks.size());
  std::mutex mutex;
  read_blocks(blocks, run, [&](int block, int64_t begin, const uint8_t* data, int64_t count) {
    const uint32_t crc = formats::crc32(0, data, static_cast<size_t>(count));
    const std::lock_guard lock(mutex);
    crcs[block][begin] = {crc, count};
  });
  std::vector<formats::Finding> out;
  for (size_t i = 0; i < blocks.size(); ++i) {
    uint32_t crc = 0;
    for (const auto& [begin, part] : crcs[i]) {
      crc = formats::crc32_combine(crc, part.first, static_cast<uint64_t>(part.second));
    }
    bytes_read += blocks[i].bytes();
    if (crc == records[i].crc) continue;
    out.push_back({records[i].where, static_cast<int64_t>(records[i].offset),
                   concat("CRC ", records[i].crc), concat("CRC ", crc), kDamaged});
  }
  return out;
}

void CrcCheck::require_whole(const RunOptions& run) const {
  int64_t bytes_read = 0;
  const std::vector<formats::Finding> findings = this->run(run, bytes_read);
  if (!findings.empty()) throw formats::FormatError(findings.front());
}

void require_whole(const Checkpoint& source, const RunOptions& run) {
  CrcCheck check;
  for (const auto* files : {&source.model_files, &source.optim_files}) {
    for (const auto& file : *files) check.add(file->shared_file());
  }
  for (const NamedTensor& tensor : source.tensors) {
    check.add(tensor.value);
    for (const auto& [name, state] : tensor.states) check.add(state);
  }
  check.require_whole(run);
}

}  // namespace zeromuon::convert
