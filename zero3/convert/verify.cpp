#include <cmath>
#include <mutex>

#include "zero3/convert/crcs.h"
#include "zero3/convert/elements.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

void check_values(const Checkpoint& checkpoint, const RunOptions& run, VerifyReport& report) {
  std::vector<Block> blocks;
  const auto add = [&](const std::string& name, const std::string& part,
                       const TensorSource& source) {
    blocks.push_back(block_of(source, source.type));
    report.tensors.push_back({name, part, 0, 0, 0});
  };
  for (const NamedTensor& tensor : checkpoint.tensors) {
    add(tensor.name, "value", tensor.value);
    for (const auto& [part, source] : tensor.states) add(tensor.name, part, source);
  }
  std::vector<ElementSums> sums(blocks.size());
  std::mutex mutex;
  read_blocks(blocks, run, [&](int block, int64_t, const uint8_t* data, int64_t count) {
    const ElementSums found = sums_of(blocks[block].type, data, count);
    const std::lock_guard lock(mutex);
    sums[block].add(found);
  });
  for (size_t i = 0; i < sums.size(); ++i) {
    TensorHealth& health = report.tensors[i];
    health.nan = sums[i].nan;
    health.infinite = sums[i].infinite;
    health.norm = std::sqrt(sums[i].squares);
    report.bytes_read += blocks[i].bytes();
    if (health.nan + health.infinite == 0) continue;
    report.problems.push_back({checkpoint.folder, -1,
                               "finite values in \"" + health.name + "\" (" + health.part + ")",
                               concat(health.nan, " NaN and ", health.infinite, " infinite"),
                               "take an earlier checkpoint; the run diverged before it was saved"});
  }
}

// CRCs of all records of the torch files among the checkpoint's files.
void check_crcs(const Checkpoint& checkpoint, const RunOptions& run, VerifyReport& report) {
  CrcCheck check;
  for (const std::string& path : checkpoint.files) {
    const auto file = std::make_shared<const InputFile>(path);
    file->park();
    check.add(file);
  }
  for (formats::Finding& finding : check.run(run, report.bytes_read)) {
    report.problems.push_back(std::move(finding));
  }
}

void check_finished(const Checkpoint& checkpoint, VerifyReport& report) {
  const std::string journal = journal_in(checkpoint.folder);
  if (journal.empty()) return;
  report.problems.push_back({journal, -1, "a finished checkpoint",
                             "the journal of a run that was interrupted",
                             "finish that run with --resume, or write it again with --force"});
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
  check_finished(checkpoint, report);
  for (formats::Finding& finding : misplaced_files(checkpoint)) {
    report.problems.push_back(std::move(finding));
  }
  if (options.check_crc) check_crcs(checkpoint, options.run, report);
  check_values(checkpoint, options.run, report);
  return report;
}

}  // namespace zeromuon::convert
