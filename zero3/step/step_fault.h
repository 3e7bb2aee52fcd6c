// What went wrong in a call, in the form in which ranks tell each other, and what it had changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>

#include "zero3/plan/bucket_route.h"

namespace zeromuon::zero3 {

struct StepFault {
  // Collectives of the call that the rank had finished: of several faults, the one with the least
  // is the first, and of those the one of the lowest rank.
  int64_t position = 0;
  std::string what;  // names sub-group, bucket, stage and rank
};

// kRecordBytes at `out`. A text that is too long is cut. values: a digest of what the rank stepped
// with.
void write_record(const std::optional<StepFault>& fault, uint64_t values, std::byte* out);

// The first fault in the records of all ranks, [W * kRecordBytes]; where no rank has any, that two
// stepped with other values; empty without that, too.
std::optional<StepFault> first_fault(std::span<const std::byte> records);

// Whether each is one that write_record() wrote: an exchange that was aborted may end as if it had
// brought them.
bool are_records(std::span<const std::byte> records);

// Where in a step something happens.
struct Where {
  int sub_group = -1, bucket = -1;  // -1: none
};
// "sub-group G, bucket B, stage S, rank R", for errors.
std::string place(const char* stage, Where where, int rank);

// What is said of values that are not finite after an update: of the block with this code (see Note
// [Flag word]), and of the parameters in a range of an AdamW sub-group's shard on `rank`.
std::string non_finite_weight(const SubGroupPlan& group, uint64_t code);
std::string non_finite_chunk(const SubGroupPlan& group, const ShardRange& range, int rank);

// What an exception says of itself.
std::string text_of(const std::exception_ptr& error);

// A task that changes weights or states: begun, and perhaps finished.
struct Change {
  Changes what;
  int sub_group, bucket;  // bucket -1: a chunk of an AdamW sub-group
  bool finished;
};

// changes: of one step, in the order in which they were begun. adamw_chunks: per sub-group. What
// was begun and is not known to be finished is in doubt: it may be done, in part, or not at all.
std::string progress_text(std::span<const Change> changes, std::span<const size_t> adamw_chunks);

}  // namespace zeromuon::zero3
