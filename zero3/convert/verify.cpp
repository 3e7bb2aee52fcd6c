#include <cmath>
#include <filesystem>
#include <mutex>

#include "csrc/formats/crc32.h"
#include "csrc/formats/format_error.h"
#include "zero3/convert/elements.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

using formats::ElementType;

// What is read of the tensors, and of the records for their CRCs.
struct Work {
  std::vector<Block> blocks;
  std::vector<TensorHealth> health;  // of the blocks
};

void add_tensor(Work& work, const std::string& name, const std::string& part,
                const TensorSource& source) {
  work.blocks.push_back(block_of(source, source.type));
  work.health.push_back({name, part, 0, 0, 0});
}

void check_values(const Checkpoint& checkpoint, const RunOptions& run, VerifyReport& report) {
  Work work;
  for (const NamedTensor& tensor : checkpoint.tensors) {
    add_tensor(work, tensor.name, "value", tensor.value);
    for (const auto& [part, source] : tensor.states) add_tensor(work, tensor.name, part, source);
  }
  std::vector<ElementSums> sums(work.blocks.size());
  std::mutex mutex;
  read_blocks(work.blocks, run, [&](int block, int64_t, const uint8_t* data, int64_t count) {
    const ElementSums found = sums_of(work.blocks[block].type, data, count);
    const std::lock_guard lock(mutex);
    sums[block].add(found);
  });
  for (size_t i = 0; i < sums.size(); ++i) {
    TensorHealth& health = work.health[i];
    health.nan = sums[i].nan;
    health.infinite = sums[i].infinite;
    health.norm = std::sqrt(sums[i].squares);
    report.bytes_read += work.blocks[i].bytes();
    if (health.nan + health.infinite == 0) continue;
    report.problems.push_back({checkpoint.folder, -1,
                               "finite values in \"" + health.name + "\" (" + health.part + ")",
                               concat(health.nan, " NaN and ", health.infinite, " infinite"),
                               "take an earlier checkpoint; the run diverged before it was saved"});
  }
  report.tensors = std::move(work.health);
}

// CRCs of all records of the torch files among the checkpoint's files.
void check_crcs(const Checkpoint& checkpoint, const RunOptions& run, VerifyReport& report) {
  std::vector<Block> blocks;
  std::vector<std::pair<std::string, const formats::ZipRecord*>> records;
  std::vector<std::unique_ptr<formats::ZipReader>> zips;
  for (const std::string& path : checkpoint.files) {
    if (std::filesystem::path(path).extension() == ".safetensors") continue;
    const auto file = std::make_shared<const formats::InputFile>(path);
    zips.push_back(std::make_unique<formats::ZipReader>(file));
    file->park();
    for (const formats::ZipRecord& record : zips.back()->records()) {
      TensorSource source{ElementType::kUInt8, {static_cast<int64_t>(record.bytes)}, {}, {}};
      if (record.bytes > 0) source.ranges.push_back({file, record.data_offset, record.bytes});
      blocks.push_back(block_of(source, source.type));
      records.emplace_back(path, &record);
    }
  }
  std::vector<std::map<int64_t, std::pair<uint32_t, int64_t>>> crcs(blocks.size());
  std::mutex mutex;
  read_blocks(blocks, run, [&](int block, int64_t begin, const uint8_t* data, int64_t count) {
    const uint32_t crc = formats::crc32(0, data, static_cast<size_t>(count));
    const std::lock_guard lock(mutex);
    crcs[block][begin] = {crc, count};
  });
  for (size_t i = 0; i < blocks.size(); ++i) {
    uint32_t crc = 0;
    for (const auto& [begin, part] : crcs[i]) {
      crc = formats::crc32_combine(crc, part.first, static_cast<uint64_t>(part.second));
    }
    report.bytes_read += blocks[i].bytes();
    const auto& [path, record] = records[i];
    if (crc == record->crc) continue;
    report.problems.push_back(
        {path + ": " + record->name, static_cast<int64_t>(record->data_offset),
         concat("CRC ", record->crc), concat("CRC ", crc), formats::kDamaged});
  }
}

}  // namespace

VerifyReport verify(const VerifyOptions& options) {
  VerifyReport report;
  Checkpoint checkpoint;
  try {
    checkpoint = open_checkpoint(options.source.path, options.source.tag);
  } catch (const formats::FormatError& error) {
    report.problems.push_back(error.finding());
    return report;
  }
  check_verb(checkpoint, "verify");
  if (options.check_crc) check_crcs(checkpoint, options.run, report);
  check_values(checkpoint, options.run, report);
  return report;
}

}  // namespace zeromuon::convert
