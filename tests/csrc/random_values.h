// Normally distributed test data.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace zeromuon::ops {

inline std::vector<float> random_values(int64_t numel, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(numel);
  for (float& v : out) v = normal(generator);
  return out;
}

}  // namespace zeromuon::ops
