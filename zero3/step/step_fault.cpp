#include "zero3/step/step_fault.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

struct Record {
  uint64_t mark;  // kRecordMark
  int64_t present, position;
  uint64_t values;
  char what[kRecordBytes - 32];
};
constexpr uint64_t kRecordMark = 0x5a65726f4d756f6eu;  // neither of zeros nor what memory begins as
static_assert(sizeof(Record) == kRecordBytes);

class Names {
 public:
  void add(const Change& change) {
    const std::string bucket = change.bucket < 0 ? "" : concat(" bucket ", change.bucket);
    const std::string name = concat("sub-group ", change.sub_group, bucket);
    if (std::find(names_.begin(), names_.end(), name) == names_.end()) names_.push_back(name);
  }
  std::string text() const {
    std::string text;
    for (const std::string& name : names_) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "nothing" : text;
  }
  // With its title; "" when there are none.
  std::string clause(const char* title) const {
    return names_.empty() ? "" : concat("; ", title, ": ", text());
  }

 private:
  std::vector<std::string> names_;
};

bool same_place(const Change& a, const Change& b) {
  return a.sub_group == b.sub_group && a.bucket == b.bucket;
}

// Whether all chunks of the change's sub-group are done, or the one task of its bucket.
bool complete(std::span<const Change> changes, const Change& of, size_t tasks) {
  return tasks ==
         static_cast<size_t>(std::count_if(changes.begin(), changes.end(), [&](const Change& c) {
           return c.finished && c.what == of.what && same_place(c, of);
         }));
}

}  // namespace

void write_record(const std::optional<StepFault>& fault, uint64_t values, std::byte* out) {
  Record record{};
  record.mark = kRecordMark;
  record.values = values;
  if (fault) {
    record.present = 1;
    record.position = fault->position;
    const size_t length = std::min(fault->what.size(), sizeof record.what - 1);
    std::memcpy(record.what, fault->what.data(), length);
  }
  std::memcpy(out, &record, sizeof record);
}

bool are_records(std::span<const std::byte> records) {
  for (size_t at = 0; at + kRecordBytes <= records.size(); at += kRecordBytes) {
    uint64_t mark;
    std::memcpy(&mark, records.data() + at, sizeof mark);
    if (mark != kRecordMark) return false;
  }
  return true;
}

std::optional<StepFault> first_fault(std::span<const std::byte> records) {
  std::optional<StepFault> first, apart;
  uint64_t values = 0;
  for (size_t at = 0; at + kRecordBytes <= records.size(); at += kRecordBytes) {
    Record record;
    std::memcpy(&record, records.data() + at, sizeof record);
    if (at == 0) values = record.values;
    if (record.values != values && !apart) {
      apart = StepFault{
          0,
          concat("rank ", at / kRecordBytes,
                 " stepped with other values than rank 0: lr, weight_decay, momentum, nesterov, "
                 "betas or eps of its param_groups differ. This step was taken apart, and weights "
                 "that ranks share are no longer one model: change the groups on all ranks alike")};
    }
    if (record.present == 0 || (first && first->position <= record.position)) continue;
    record.what[sizeof record.what - 1] = '\0';
    first = StepFault{record.position, record.what};
  }
  return first ? first : apart;
}

std::string place(const char* stage, Where where, int rank) {
  const std::string bucket = where.bucket < 0 ? "" : concat(", bucket ", where.bucket);
  const std::string group =
      where.sub_group < 0 ? "" : concat("sub-group ", where.sub_group, bucket, ", ");
  return concat(group, "stage ", stage, ", rank ", rank);
}

std::string non_finite_weight(const SubGroupPlan& group, uint64_t code) {
  return concat("the updated weight of \"", group.label_of_block(static_cast<int>(code - 1)),
                "\" has a NaN or infinite value, in its master or in the copy that the model uses");
}

std::string non_finite_chunk(const SubGroupPlan& group, const ShardRange& range, int rank) {
  constexpr int kNamed = 3;
  std::string names;
  int count = 0;
  for (size_t p = 0; p < group.layout.params().size(); ++p) {
    const ShardRange real = group.layout.real_range(static_cast<int>(p), rank);
    if (real.numel == 0 || real.offset >= range.offset + range.numel ||
        range.offset >= real.offset + real.numel) {
      continue;
    }
    if (++count > kNamed) continue;
    names += concat(names.empty() ? "" : ", ", "\"", group.layout.params()[p].name, "\"");
  }
  if (count > kNamed) names += concat(" and ", count - kNamed, " more");
  return concat("the update of ", count == 1 ? "" : "one of ", names,
                " wrote a NaN or infinite value to the weight, its copy in the model, exp_avg or "
                "exp_avg_sq: look at its gradient, whose square overflows from 1.8e19 on");
}

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an unknown exception";
  }
}

std::string progress_text(std::span<const Change> changes, std::span<const size_t> adamw_chunks) {
  Names applied, applied_in_part, advanced, advanced_in_part, casts_missing;
  const auto weights_begun = [&](const Change& cast) {
    return std::any_of(changes.begin(), changes.end(), [&](const Change& c) {
      return same_place(c, cast) && c.what == Changes::kWeights;
    });
  };
  for (const Change& c : changes) {
    const size_t tasks = c.bucket < 0 ? adamw_chunks[c.sub_group] : 1;
    if (c.what == Changes::kCasts) {
      if (!c.finished && weights_begun(c)) casts_missing.add(c);
    } else if (c.what == Changes::kWeights) {
      (complete(changes, c, tasks) ? applied : applied_in_part).add(c);
    } else {
      (c.finished ? advanced : advanced_in_part).add(c);
    }
  }
  return concat("applied in this step: ", applied.text(),
                applied_in_part.clause("applied in part or in doubt"),
                casts_missing.clause("low-precision weights not written or in doubt"),
                "; momenta advanced: ", advanced.text(),
                advanced_in_part.clause("momenta in doubt"));
}

}  // namespace zeromuon::zero3
