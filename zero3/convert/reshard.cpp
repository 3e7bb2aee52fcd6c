#include "zero3/convert/outputs.h"
#include "zero3/convert/verbs.h"
#include "zero3/convert/write_formats.h"

namespace zeromuon::convert {

namespace {

// Where the target has more ranks than the source.
std::string note_of_more_ranks(int ranks, int world_size) {
  const int last = world_size - 1;
  const std::string which = ranks == last ? concat("rank ", last, " takes")
                                          : concat("ranks ", ranks, " to ", last, " take");
  return concat(which, " the client state (random states, too) of rank r % ", ranks,
                ": seed them anew where ranks must differ");
}

}  // namespace

OutputReport reshard(const ReshardOptions& options) {
  const Checkpoint source = open_checkpoint(options.source.path, options.source.tag);
  check_verb(source, "reshard");
  require(options.sub_group_size >= 0, "sub_group_size: expected 0 or more, got ",
          options.sub_group_size);
  const int64_t own = source.facts.sub_group_size.value_or(kDefaultSubGroupSize);
  const int64_t size = options.sub_group_size > 0 ? options.sub_group_size : own;
  const std::string tag = options.tag.empty() ? source.tag : options.tag;
  const std::string what = concat("reshard ", options.world_size, " ", size, " ", tag);
  OutputReport report;
  report.notes = source.warnings;
  const auto ranks = static_cast<int>(source.model_files.size());
  if (options.world_size > ranks) {
    report.notes.push_back(note_of_more_ranks(ranks, options.world_size));
  }
  write_zero3(*same_optimizer(source), {options.output, tag, options.world_size, size, what},
              options.run, report);
  return report;
}

OutputReport universal(const UniversalOptions& options) {
  const Checkpoint source = open_checkpoint(options.source.path, options.source.tag);
  check_verb(source, "universal");
  OutputReport report;
  report.notes = source.warnings;
  if (source.optimizer == Optimizer::kDeepSpeedMuon) {
    report.notes.push_back(
        "momentum_buffer is written as exp_avg, the only name that DeepSpeed's loader knows; that "
        "loader copies the hyper-parameters of the first group (use_muon, too) onto all, so its "
        "own Muon does not resume from a universal checkpoint: use reshard, or convert-optimizer");
  }
  write_universal(*same_optimizer(source), options.output, "universal", options.run, report);
  return report;
}

}  // namespace zeromuon::convert
