// Who may use which slot: all the back-pressure of a step.
#pragma once

#include <memory>
#include <vector>

#include "zero3/step/signal.h"

namespace zeromuon::zero3 {

// Gives slots to buckets in the order of their numbers; see Note [Slots cannot deadlock].
// Thread: that of the io_context.
class SlotQueue {
 public:
  class Lease;

  SlotQueue(boost::asio::io_context& io, int slots);

  // number: of the bucket, each once, from 0 on.
  boost::asio::awaitable<Lease> acquire(int number);
  int free() const { return static_cast<int>(free_.size()); }

 private:
  std::vector<int> free_;
  int next_ = 0;  // bucket
  Signal freed_;
  // Not an owner: tells leases whether the queue is there. The last member: gone first.
  const std::shared_ptr<SlotQueue> self_{this, [](SlotQueue*) {}};
};

// A slot while a bucket is in flight. Of a step that is given up, the io_context may let go of it
// when there is no queue any more.
class SlotQueue::Lease {
 public:
  Lease(const std::shared_ptr<SlotQueue>& queue, int slot) : index(slot), queue_(queue) {}
  Lease(Lease&&) = default;
  Lease& operator=(Lease&&) = delete;
  ~Lease();

  const int index;

 private:
  std::weak_ptr<SlotQueue> queue_;  // empty: moved from
};

}  // namespace zeromuon::zero3
