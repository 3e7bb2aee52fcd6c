#include "zero3/plan/collective_schedule.h"

#include <algorithm>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {

std::vector<Ticket> collective_schedule(int buckets, int slots) {
  invariant(slots >= 1, "a schedule needs a slot, got ", slots);
  const int ahead = std::max(1, slots < 4 ? slots - 1 : slots - 2);
  std::vector<Ticket> order;
  for (int k = 0; k < buckets + ahead; ++k) {
    if (k >= ahead) order.push_back({k - ahead, Direction::kScatter});
    if (k < buckets) order.push_back({k, Direction::kGather});
  }
  std::erase_if(order, [&](const Ticket& t) { return t.bucket >= buckets; });
  return order;
}

void check_schedule(const std::vector<Ticket>& schedule, int buckets, int slots) {
  int gathered = 0, scattered = 0;
  for (const auto& [bucket, direction] : schedule) {
    if (direction == Direction::kGather) {
      invariant(bucket == gathered, "bucket ", bucket, " is gathered where ", gathered, " is next");
      invariant(bucket - slots < scattered, "bucket ", bucket, " is gathered before bucket ",
                bucket - slots, " is scattered, whose slot it needs: ", slots, " slots deadlock");
      ++gathered;
    } else {
      invariant(bucket == scattered, "bucket ", bucket, " is scattered where ", scattered,
                " is next");
      invariant(bucket < gathered, "bucket ", bucket, " is scattered before it is gathered");
      ++scattered;
    }
  }
  invariant(gathered == buckets && scattered == buckets, "a schedule of ", buckets,
            " buckets gathers ", gathered, " and scatters ", scattered);
}

}  // namespace zeromuon::zero3
