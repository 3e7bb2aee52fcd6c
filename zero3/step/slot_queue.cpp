#include "zero3/step/slot_queue.h"

namespace zeromuon::zero3 {

SlotQueue::SlotQueue(boost::asio::io_context& io, int slots) : freed_(io) {
  for (int i = slots; i-- > 0;) free_.push_back(i);
}

boost::asio::awaitable<SlotQueue::Lease> SlotQueue::acquire(int number) {
  while (next_ != number || free_.empty()) co_await freed_.wait();
  ++next_;
  const int slot = free_.back();
  free_.pop_back();
  freed_.notify();
  co_return Lease(self_, slot);
}

SlotQueue::Lease::~Lease() {
  const auto queue = queue_.lock();
  if (!queue) return;
  queue->free_.push_back(index);
  queue->freed_.notify();
}

}  // namespace zeromuon::zero3
