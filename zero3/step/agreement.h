// What went wrong in a call, on this rank and on the others.
//
// Note [All ranks leave together]
// A stage that fails makes this rank skip all further work but collectives, and mark every segment
// of the next collective with kFailedFlag. Collectives are issued in the order of the schedule, so
// that one is the next on every rank, and each sees the mark when it is done: nobody issues another
// one. At the end of every call, failed or not, each rank sends a record with its first fault to
// each other, and all take the same first one. A collective that fails itself, or a lane that makes
// no progress, aborts the group with the cause.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <exception>
#include <optional>
#include <span>
#include <string>

#include "zero3/step/lanes_in_use.h"
#include "zero3/step/signal.h"
#include "zero3/step/step_resources.h"

namespace zeromuon::zero3 {

// Thread: that of the io_context.
class Agreement {
 public:
  // over: notified when no more bucket collectives will come. values: a digest, see
  // digest_of_values().
  Agreement(StepResources& resources, Signal& over, uint64_t values);

  bool failed() const { return fault_.has_value(); }  // this rank knows of a fault
  bool over() const { return over_; }                 // no more bucket collectives
  bool broken() const { return broken_; }             // no more collectives at all: aborted
  bool healthy() const { return !failed() && !over_; }
  const std::optional<StepFault>& fault() const { return fault_; }

  // A stage of this rank failed; the first one counts.
  void fail(const char* stage, Where where, const std::string& what);
  // A collective failed itself, here or because another rank ended it.
  void lose(const char* stage, Where where, const std::exception_ptr& error);
  // No collective can follow: the others are told by ending those that they wait for.
  void break_off(const std::string& cause);
  // Ends as another rank did that gave up while this one's exchanges still succeed; false: none
  // did.
  bool leave_with_others();

  // A bucket's collective is done. words: [W], the flags that it brought.
  void exchanged(const StageRow& row, Where where, Direction direction,
                 std::span<const FlagWord> words);

  // The exchange that ends a call: then fault() is the first of any rank, the same on all.
  boost::asio::awaitable<void> close(LanesInUse& lanes);

 private:
  std::string place_of(const char* stage, Where where) const;
  void exchange_records();

  StepResources& resources_;
  Signal& over_signal_;
  const uint64_t values_;
  std::optional<StepFault> fault_;
  bool over_ = false, broken_ = false;
  int64_t position_ = 0;  // collectives of the call that are done
};

}  // namespace zeromuon::zero3
