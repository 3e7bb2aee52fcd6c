#include "zero3/step/agreement.h"

#include <cstring>

#include "csrc/base/check.h"
#include "zero3/plan/step_costs.h"

namespace zeromuon::zero3 {
namespace {

bool is_aborted(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const comm::Aborted&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

Agreement::Agreement(StepResources& resources, Signal& over, uint64_t values)
    : resources_(resources), over_signal_(over), values_(values) {}

std::string Agreement::place_of(const char* stage, Where where) const {
  return place(stage, where, resources_.collectives->rank());
}

void Agreement::fail(const char* stage, Where where, const std::string& what) {
  if (fault_) return;
  fault_ = StepFault{position_, concat(place_of(stage, where), ": ", what)};
}

void Agreement::lose(const char* stage, Where where, const std::exception_ptr& error) {
  const std::string what = text_of(error);
  break_off(is_aborted(error) ? what : concat(place_of(stage, where), ": ", what));
}

void Agreement::break_off(const std::string& cause) {
  if (!broken_) {
    const std::string own = fault_ ? fault_->what : cause;
    fault_ = StepFault{position_, resources_.collectives->abort(own)};
  }
  over_ = broken_ = true;
  over_signal_.notify();
}

bool Agreement::leave_with_others() {
  const std::string cause = resources_.collectives->cause();
  if (cause.empty()) return false;
  break_off(cause);
  return true;
}

void Agreement::exchanged(const StageRow& row, Where where, Direction direction,
                          std::span<const FlagWord> words) {
  ++position_;
  for (size_t peer = 0; peer < words.size(); ++peer) {
    if (words[peer] == 0) continue;
    over_ = true;
    if (words[peer] == kFailedFlag || fault_) continue;
    const int block = static_cast<int>(words[peer] - 1);
    const char* what = direction == Direction::kGather ? "momentum" : "Newton-Schulz result";
    const auto& group = resources_.plan.sub_groups[where.sub_group];
    fault_ = StepFault{position_,
                       concat("sub-group ", where.sub_group, ", bucket ", where.bucket, ", stage ",
                              row.stage, ": the ", what, " of \"", group.label_of_block(block),
                              "\" has a NaN or infinite value on rank ", peer)};
  }
}

boost::asio::awaitable<void> Agreement::close(LanesInUse& lanes) {
  if (broken_) co_return;
  const StageRow& row = resources_.plan.stages.closing;
  const int world = resources_.plan.options.world_size;
  for (int peer = 0; peer < world; ++peer) {
    write_record(fault_, values_, resources_.records.data() + peer * kRecordBytes);
  }
  const offload::Outcome outcome =
      co_await lanes.run(row, {}, closing_cost(world), [this] { exchange_records(); });
  if (outcome.error) {
    lose(row.stage, {}, outcome.error);
    co_return;
  }
  if (broken_ || leave_with_others()) co_return;
  const auto theirs = resources_.records.subspan(world * kRecordBytes);
  if (are_records(theirs)) {
    fault_ = first_fault(theirs);
  } else {
    break_off(concat(place_of(row.stage, {}), ": the exchange ended and brought nothing: another ",
                     "rank has aborted the process group"));
  }
}

// On the collective lane.
void Agreement::exchange_records() {
  const std::span<std::byte> records = resources_.records;
  const int world = resources_.plan.options.world_size;
  const int64_t bytes = world * kRecordBytes;
  const std::vector<int64_t> sizes(world, kRecordBytes);
  offload::Device& device = *resources_.backend.compute;
  std::byte* const out = resources_.buffers->records();
  std::memset(records.data() + bytes, 0, static_cast<size_t>(bytes));  // those of the last call
  device.copy_to_device(out, records.data(), 2 * bytes);
  resources_.collectives->all_to_all_v(
      {device.for_collectives(out), sizes, device.for_collectives(out + bytes), sizes});
  device.copy_to_host(records.data() + bytes, out + bytes, bytes);
}

}  // namespace zeromuon::zero3
