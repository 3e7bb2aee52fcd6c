// One call of the executor: the buckets and AdamW chunks of some sub-groups on their way through
// the lanes, at the same time, in bounded memory.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "zero3/step/agreement.h"
#include "zero3/step/lanes_in_use.h"
#include "zero3/step/slot_queue.h"
#include "zero3/step/step_resources.h"

namespace zeromuon::zero3 {

// Note [One thread conducts]
// The coroutines run on the thread that runs the io_context: the caller of the step. Lanes only do
// what tasks say, and post their outcomes to it. So no member of Conductor, LanesInUse, Agreement
// and SlotQueue needs a lock, and one is atomic.
//
// Thread: that of the io_context.
class Conductor {
 public:
  Conductor(boost::asio::io_context& io, StepResources& resources, const StepCall& call,
            const StepLimits& limits, StepRecord& record);

  // Ends when all tasks are done and all slots are back, whatever went wrong. Keeps the resources
  // busy until then.
  boost::asio::awaitable<void> run();

  // After run(): the first fault of any rank, the same on all; whether the group was aborted.
  const std::optional<StepFault>& fault() const { return agreement_.fault(); }
  bool broken() const { return agreement_.broken(); }

 private:
  template <typename T>
  using awaitable = boost::asio::awaitable<T>;

  struct Bucket {
    const MuonCall* call;
    int index;  // in the sub-group
  };

  // Of one bucket: what the host has not seen the end of.
  struct Handed {
    const StageRow* row = nullptr;  // the last of it
    std::shared_ptr<offload::Mark> mark = {};
    std::vector<size_t> changes = {};  // of the record
  };

  awaitable<void> run_bucket(int number);
  awaitable<void> run_rows(const std::vector<StageRow>& rows, const BucketStages& stages,
                           Where where, Handed& handed);
  awaitable<void> exchange(const StageRow& row, const BucketStages& stages, Where where,
                           Ticket ticket, std::span<FlagWord> words, Handed& handed);
  awaitable<void> adamw_worker(int worker);
  awaitable<void> run_stage(const StageRow& row, Where where, offload::Cost cost,
                            std::function<void()> body, Handed& handed);
  awaitable<offload::Outcome> run_behind(const StageRow& row, Where where, offload::Cost cost,
                                         std::function<void()> body, bool hands_over,
                                         Handed& handed);
  awaitable<void> watch();
  void fail_stuck_lanes();
  void spawn(awaitable<void> task);
  int rank() const { return resources_.collectives->rank(); }
  offload::Cost cost_of(const StageRow& row, const BucketStages& stages) const;

  boost::asio::io_context& io_;
  StepResources& resources_;
  const StepCall& call_;
  const StepLimits& limits_;
  StepRecord& record_;
  const NewtonSchulzBench bench_;

  std::vector<Bucket> buckets_;  // of all Muon sub-groups of the call
  std::vector<Ticket> schedule_;
  size_t next_ticket_ = 0;
  size_t chunk_call_ = 0, next_chunk_ = 0;  // what the next free AdamW worker takes
  int running_ = 0;                         // coroutines
  bool done_ = false;
  Signal ticket_passed_, task_ended_;
  boost::asio::steady_timer watch_timer_;

  LanesInUse lanes_;
  Agreement agreement_;
  SlotQueue slots_;  // the last member: leases outlive no other
};

}  // namespace zeromuon::zero3
