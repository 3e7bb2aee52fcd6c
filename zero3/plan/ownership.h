// Which rank runs Newton-Schulz on which matrix.
#pragma once

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {

// Longest processing time first (R. L. Graham, 1969): matrices in order of falling cost, each to
// the rank with the least load so far; ties go to the lower index and the lower rank, so every rank
// computes the same answer. A matrix that has a home, a rank that holds it already, goes there
// where that does not put the rank above the average of all.
// Thread: used while planning, by one thread.
class Ownership {
 public:
  explicit Ownership(int world_size) : loads_(world_size, 0.0) {
    require(world_size >= 1, "world size must be at least 1, got ", world_size);
  }

  static constexpr int kNoHome = -1;

  // Owners of the matrices, [costs.size()]; the loads of earlier calls are carried on. homes: of
  // each, a rank or kNoHome.
  std::vector<int> assign(std::span<const double> costs, std::span<const int> homes) {
    std::vector<size_t> order(costs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return costs[a] > costs[b]; });
    // A sum of the same numbers in another order may be a little larger.
    const double average = (1 + 1e-9) *
                           (std::accumulate(loads_.begin(), loads_.end(), 0.0) +
                            std::accumulate(costs.begin(), costs.end(), 0.0)) /
                           static_cast<double>(loads_.size());
    std::vector<int> owners(costs.size());
    for (const size_t matrix : order) {
      const auto least = std::min_element(loads_.begin(), loads_.end());
      const int home = homes[matrix];
      const bool stays = home != kNoHome && loads_[home] + costs[matrix] <= average;
      const int owner = stays ? home : static_cast<int>(least - loads_.begin());
      owners[matrix] = owner;
      loads_[owner] += costs[matrix];
    }
    return owners;
  }

  const std::vector<double>& loads() const { return loads_; }  // [W]

 private:
  std::vector<double> loads_;
};

}  // namespace zeromuon::zero3
