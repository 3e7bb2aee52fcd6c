#include "zero3/plan/ownership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

std::vector<int> assign(Ownership& ownership, const std::vector<double>& costs) {
  return ownership.assign(costs, std::vector<int>(costs.size(), Ownership::kNoHome));
}

TEST(Ownership, TheCostliestMatrixGoesFirst) {
  Ownership ownership(2);
  EXPECT_EQ(assign(ownership, {1, 5, 3}), (std::vector<int>{1, 0, 1}));
  EXPECT_EQ(ownership.loads(), (std::vector<double>{5, 4}));
}

TEST(Ownership, TiesGoToTheLowerRankSoThatAllRanksAgree) {
  Ownership ownership(3);
  EXPECT_EQ(assign(ownership, {2, 2, 2, 2}), (std::vector<int>{0, 1, 2, 0}));
}

TEST(Ownership, LoadsOfEarlierBucketsAreCarriedOn) {
  Ownership ownership(2);
  assign(ownership, {4});
  EXPECT_EQ(assign(ownership, {3, 2}), (std::vector<int>{1, 1}));
}

TEST(Ownership, StaysWithinFourThirdsOfTheAverageOrOfTheLargestMatrix) {
  std::vector<double> costs;
  for (int i = 0; i < 200; ++i) costs.push_back(1 + (i * 7919) % 101);
  for (int world = 1; world <= 16; ++world) {
    Ownership ownership(world);
    assign(ownership, costs);
    const double most = *std::max_element(ownership.loads().begin(), ownership.loads().end());
    const double total = std::reduce(costs.begin(), costs.end());
    EXPECT_LE(most, 4.0 / 3.0 * std::max(total / world, 101.0)) << "W=" << world;
  }
}

TEST(Ownership, AMatrixStaysAtHomeWhereThatKeepsTheBalance) {
  Ownership even(3);
  EXPECT_EQ(even.assign(std::vector<double>(6, 0.1), std::vector<int>{0, 0, 1, 1, 2, 2}),
            (std::vector<int>{0, 0, 1, 1, 2, 2}));
  Ownership all_at_one(3);
  EXPECT_EQ(all_at_one.assign(std::vector<double>(3, 1), std::vector<int>{2, 2, 2}),
            (std::vector<int>{2, 0, 1}));
  Ownership behind(2);
  assign(behind, {4});
  EXPECT_EQ(behind.assign(std::vector<double>{1, 1}, std::vector<int>{0, 0}),
            (std::vector<int>{1, 1}));
}

TEST(Ownership, AWorldWithoutRanksIsRefused) { EXPECT_THROW(Ownership(0), ValueError); }

}  // namespace
}  // namespace zeromuon::zero3
