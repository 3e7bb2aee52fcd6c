// One call of the executor: the buckets and AdamW ranges of some sub-groups on their way through
// the lanes, at the same time, in bounded memory.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zero3/step/bucket_stages.h"
#include "zero3/step/step_fault.h"
#include "zero3/step/step_progress.h"

namespace zeromuon::zero3 {

// A contiguous range of a flat shard without padding, decayed alike.
struct AdamWChunk {
  ShardRange range;
  bool decay;
};

// What serves every call; made at bind.
struct StepResources {
  StepPlan plan;
  std::unique_ptr<comm::Collectives> collectives;
  offload::Backend backend;
  std::vector<ops::NewtonSchulz> newton_schulz;       // one per shape
  std::vector<std::vector<BucketRoute>> routes;       // per sub-group and bucket
  std::vector<std::vector<AdamWChunk>> adamw_chunks;  // per sub-group
  std::unique_ptr<offload::StepBuffers> buffers;
  std::vector<float*> owned_matrices;        // of one shape, while Newton-Schulz runs
  std::vector<std::vector<FlagWord>> flags;  // [slots][W], what the last exchange of a slot brought
  std::vector<std::byte> records;            // [2 * W * kRecordBytes]: to all ranks, and from them
};

struct MuonCall {
  int sub_group;
  MuonPointers shard;
  MuonHyperParameters hyper;
};

struct AdamWCall {
  int sub_group;
  float* weight;
  const float* gradient;
  float *exp_avg, *exp_avg_sq;
  std::byte* low_precision;  // as in MuonPointers
  DType low_dtype;
  bool low_with_shard;
  AdamWHyperParameters hyper;
};

// Muon and AdamW calls in rising order of sub-groups.
struct StepCall {
  std::vector<MuonCall> muon;
  std::vector<AdamWCall> adamw;
};

// What a call did, for counters, errors and traces.
struct StepRecord {
  Counters counters;
  std::vector<Change> changes;  // of the step
  bool traces = false;
  std::vector<TraceEvent> trace;
};

struct StepLimits {
  // A lane that has work and finishes none for so long fails the step; 0: it may.
  std::chrono::milliseconds stage_timeout{0};
  // Gets the state of every lane then, at once: the lane may never come back.
  std::function<void(const std::string&)> diagnose = [](const std::string&) {};
};

// Note [One thread conducts]
// The coroutines run on the thread that runs the io_context: the caller of the step. Lanes only do
// what tasks say, and post their outcomes to it. So no member below needs a lock, and one is
// atomic.
//
// Note [All ranks leave together]
// A stage that fails makes this rank skip all further work but collectives, and mark every segment
// of the next collective with kFailedFlag. Collectives are issued in the order of the schedule, so
// that one is the next on every rank, and each sees the mark when it is done: nobody issues another
// one. At the end of every call, failed or not, each rank sends a record with its first fault to
// each other, and all take the same first one. A collective that fails itself, or a lane that makes
// no progress, aborts the group with the cause.
class StepPipeline {
 public:
  StepPipeline(boost::asio::io_context& io, StepResources& resources, const StepCall& call,
               const StepLimits& limits, StepRecord& record);

  // Ends when all tasks are done and all slots are back, whatever went wrong. Keeps the resources
  // busy until then.
  boost::asio::awaitable<void> run();

  // The first fault of any rank, the same on all.
  const std::optional<Fault>& fault() const { return fault_; }
  bool broken() const { return broken_; }  // the group was aborted

 private:
  using Clock = std::chrono::steady_clock;
  template <typename T>
  using awaitable = boost::asio::awaitable<T>;

  struct Bucket {
    const MuonCall* call;
    int index;  // in the sub-group
    int sub_group() const { return call->sub_group; }
  };
  struct Where {
    int sub_group, bucket;  // bucket -1: none
  };
  struct Lease;

  // Wakes every coroutine that waits for something to change.
  class Signal {
   public:
    explicit Signal(boost::asio::io_context& io);
    awaitable<void> wait();
    void notify() { timer_.cancel(); }

   private:
    boost::asio::steady_timer timer_;
  };

  awaitable<void> run_bucket(int number);
  awaitable<void> gather_momentum(const BucketStages& stages, Where where);
  awaitable<void> adamw_worker(int worker);
  awaitable<void> run_chunk(const AdamWCall& call, const AdamWChunk& chunk, int worker);
  awaitable<void> close();
  awaitable<void> watch();

  awaitable<void> stage(Stage stage, Where where, offload::LaneKind kind, offload::Cost cost,
                        std::function<void()> body,
                        offload::Urgency urgency = offload::Urgency::kUrgent);
  awaitable<void> exchange(const BucketStages& stages, Where where, Ticket ticket,
                           std::span<FlagWord> words);
  awaitable<offload::Outcome> on_lane(Stage stage, Where where, offload::LaneKind kind,
                                      offload::Cost cost, std::function<void()> body,
                                      offload::Urgency urgency);
  awaitable<Lease> acquire_slot(int number);

  void spawn(awaitable<void> task);
  bool healthy() const { return !fault_ && !over_; }
  void fail(Stage stage, Where where, const std::string& what);
  void lose(Stage stage, Where where, const std::exception_ptr& error);
  void break_off(const std::string& cause);
  void check_flags(Stage stage, Where where, std::span<const FlagWord> words);
  void note(Stage stage, Where where, offload::LaneKind kind, const offload::Outcome& outcome);
  bool changes_tensors(Stage stage) const;
  offload::Cost cost_of(const BucketStages& stages, Stage stage) const;
  std::string place(Stage stage, Where where) const;
  bool leave_with_others();
  void fail_stuck_lanes();
  void check_all_is_back() const;

  boost::asio::io_context& io_;
  StepResources& resources_;
  const StepCall& call_;
  const StepLimits& limits_;
  StepRecord& record_;

  std::vector<Bucket> buckets_;  // of all Muon sub-groups of the call
  std::vector<Ticket> schedule_;
  size_t next_ticket_ = 0;
  std::vector<int> free_slots_;
  int next_for_slot_ = 0;                   // bucket
  size_t chunk_call_ = 0, next_chunk_ = 0;  // what the next free AdamW worker takes
  int running_ = 0;                         // coroutines
  Signal slot_freed_, ticket_passed_, task_ended_;
  boost::asio::steady_timer watch_timer_;

  std::optional<Fault> fault_;
  bool over_ = false;    // no more bucket collectives
  bool broken_ = false;  // no more collectives at all
  bool done_ = false;
  int64_t position_ = 0;

  // What a lane was given and has not done, as far as this thread knows: first what runs.
  struct LaneProgress {
    struct Entry {
      int64_t number;
      Stage stage;
      Where where;
      offload::Urgency urgency;
    };
    std::vector<Entry> entries;
    Clock::time_point last;  // when one was done, or the first came

    void add(const Entry& entry);
    void remove(int64_t number);
  };
  int64_t tasks_ = 0;
  std::map<const offload::Lane*, LaneProgress> progress_;
  // Whether the last collective has been begun; set by its lane.
  std::atomic<bool> in_collective_ = false;

  // Not an owner: tells leases whether the pipeline is there. The last member: gone first.
  const std::shared_ptr<StepPipeline> self_{this, [](StepPipeline*) {}};
};

}  // namespace zeromuon::zero3
