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
// computes the same answer.
// Thread: used while planning, by one thread.
class Ownership {
 public:
  explicit Ownership(int world_size) : loads_(world_size, 0.0) {
    require(world_size >= 1, "world size must be at least 1, got ", world_size);
  }

  // Owners of the matrices, [costs.size()]; the loads of earlier calls are carried on.
  std::vector<int> assign(std::span<const double> costs) {
    std::vector<size_t> order(costs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return costs[a] > costs[b]; });
    std::vector<int> owners(costs.size());
    for (const size_t matrix : order) {
      const auto least = std::min_element(loads_.begin(), loads_.end());
      owners[matrix] = static_cast<int>(least - loads_.begin());
      *least += costs[matrix];
    }
    return owners;
  }

  const std::vector<double>& loads() const { return loads_; }  // [W]

 private:
  std::vector<double> loads_;
};

}  // namespace zeromuon::zero3
