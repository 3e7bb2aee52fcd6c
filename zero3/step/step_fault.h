// What went wrong in a call, in the form in which ranks tell each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>

#include "zero3/plan/bucket_route.h"

namespace zeromuon::zero3 {

struct Fault {
  // Collectives of the call that the rank had finished: of several faults, the one with the least
  // is the first, and of those the one of the lowest rank.
  int64_t position = 0;
  std::string what;  // names sub-group, bucket, stage and rank
};

// kRecordBytes at `out`. A text that is too long is cut.
void write_record(const std::optional<Fault>& fault, std::byte* out);

// The first fault in the records of all ranks, [W * kRecordBytes]; empty when no rank has any.
std::optional<Fault> first_fault(std::span<const std::byte> records);

// What an exception says of itself.
std::string text_of(const std::exception_ptr& error);

}  // namespace zeromuon::zero3
