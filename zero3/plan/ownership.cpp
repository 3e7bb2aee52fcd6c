#include "zero3/plan/ownership.h"

#include <algorithm>
#include <numeric>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {

Ownership::Ownership(int world_size) : loads_(world_size, 0.0) {
  require(world_size >= 1, "world size must be at least 1, got ", world_size);
}

std::vector<int> Ownership::assign(std::span<const double> costs) {
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

}  // namespace zeromuon::zero3
