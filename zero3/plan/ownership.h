// Which rank runs Newton-Schulz on which matrix.
#pragma once

#include <span>
#include <vector>

namespace zeromuon::zero3 {

// Longest processing time first (R. L. Graham, 1969): matrices in order of falling cost, each to
// the rank with the least load so far; ties go to the lower index and the lower rank, so every rank
// computes the same answer.
// Thread: used while planning, by one thread.
class Ownership {
 public:
  explicit Ownership(int world_size);

  // Owners of the matrices, [costs.size()]; the loads of earlier calls are carried on.
  std::vector<int> assign(std::span<const double> costs);

  const std::vector<double>& loads() const { return loads_; }  // [W]

 private:
  std::vector<double> loads_;
};

}  // namespace zeromuon::zero3
