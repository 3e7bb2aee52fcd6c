#include <cmath>
#include <mutex>

#include "zero3/convert/crcs.h"
#include "zero3/convert/elements.h"
#include "zero3/convert/outputs.h"

namespace zeromuon::convert {
namespace {

// "3" of zero_pp_rank_3_mp_rank_00_model_states; "" of other names.
std::string rank_in(const std::string& name) {
  constexpr std::string_view kBefore = "zero_pp_rank_";
  const size_t at = name.find(kBefore);
  if (at == std::string::npos) return "";
  const size_t begin = at + kBefore.size();
  return name.substr(begin, name.find_first_not_of("0123456789", begin) - begin);
}

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

// What torch.save put around the records is the name of the file that it wrote.
void check_ranks(const Checkpoint& checkpoint, VerifyReport& report) {
  for (const auto* files : {&checkpoint.model_files, &checkpoint.optim_files}) {
    for (const auto& file : *files) {
      const std::string own = rank_in(std::filesystem::path(file->path()).filename().string());
      const std::string written = rank_in(file->archive_name());
      if (own.empty() || written.empty() || own == written) continue;
      report.problems.push_back({file->path(), -1, "the file of rank " + own,
                                 "one that was written as that of rank " + written,
                                 "restore this rank's file, or use an older checkpoint"});
    }
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
  check_ranks(checkpoint, report);
  if (options.check_crc) check_crcs(checkpoint, options.run, report);
  check_values(checkpoint, options.run, report);
  return report;
}

}  // namespace zeromuon::convert
