#include "zero3/step/step_fault.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

struct Record {
  int64_t present, position;
  char what[kRecordBytes - 16];
};
static_assert(sizeof(Record) == kRecordBytes);

}  // namespace

void write_record(const std::optional<StepFault>& fault, std::byte* out) {
  Record record{};
  if (fault) {
    record.present = 1;
    record.position = fault->position;
    const size_t length = std::min(fault->what.size(), sizeof record.what - 1);
    std::memcpy(record.what, fault->what.data(), length);
  }
  std::memcpy(out, &record, sizeof record);
}

std::optional<StepFault> first_fault(std::span<const std::byte> records) {
  std::optional<StepFault> first;
  for (size_t at = 0; at + kRecordBytes <= records.size(); at += kRecordBytes) {
    Record record;
    std::memcpy(&record, records.data() + at, sizeof record);
    if (record.present == 0 || (first && first->position <= record.position)) continue;
    record.what[sizeof record.what - 1] = '\0';
    first = StepFault{record.position, record.what};
  }
  return first;
}

std::string place(const char* stage, Where where, int rank) {
  const std::string bucket = where.bucket < 0 ? "" : concat(", bucket ", where.bucket);
  const std::string group =
      where.sub_group < 0 ? "" : concat("sub-group ", where.sub_group, bucket, ", ");
  return concat(group, "stage ", stage, ", rank ", rank);
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

}  // namespace zeromuon::zero3
