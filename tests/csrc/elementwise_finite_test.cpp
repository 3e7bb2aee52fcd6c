// What AdamW and apply say of the values that they write.
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"

namespace zeromuon::ops {
namespace {

// The arrays of a call, all of them harmless but for one element.
struct Arrays {
  static constexpr int64_t kNumel = 37;  // vectors of every path and a rest

  std::vector<float> weight = std::vector<float>(kNumel, 1.0f);
  std::vector<float> gradient = std::vector<float>(kNumel, 0.5f);
  std::vector<float> exp_avg = std::vector<float>(kNumel, 0.25f);
  std::vector<float> exp_avg_sq = std::vector<float>(kNumel, 0.125f);
  std::vector<Float16> low = std::vector<Float16>(kNumel);
  bool casts = false;

  bool adamw(CpuKernels kernels) {
    return ops::adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 3},
                      {weight.data(), gradient.data(), exp_avg.data(), exp_avg_sq.data(), cast()},
                      kNumel, kernels);
  }
  bool apply(CpuKernels kernels) {
    return apply_update({1e-2, 0.1, 0.7}, {weight.data(), gradient.data(), cast()}, kNumel,
                        kernels);
  }

 private:
  Typed cast() { return casts ? Typed(low.data()) : Typed(); }
};

class Finite : public ::testing::TestWithParam<CpuKernels> {
 protected:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  static constexpr int64_t kNumel = Arrays::kNumel;

  void SetUp() override {
    if (!why_not(GetParam()).empty()) GTEST_SKIP() << why_not(GetParam());
  }

  static bool adamw(int64_t at, std::vector<float> Arrays::*array, float value,
                    bool casts = false) {
    Arrays a;
    a.casts = casts;
    (a.*array)[at] = value;
    return a.adamw(GetParam());
  }
  static bool apply(int64_t at, std::vector<float> Arrays::*array, float value,
                    bool casts = false) {
    Arrays a;
    a.casts = casts;
    (a.*array)[at] = value;
    return a.apply(GetParam());
  }
};

TEST_P(Finite, WhatIsHarmlessIsNotReported) {
  for (const bool casts : {false, true}) {
    Arrays a;
    a.casts = casts;
    EXPECT_TRUE(a.adamw(GetParam()));
    EXPECT_TRUE(a.apply(GetParam()));
  }
  EXPECT_TRUE(adamw(3, &Arrays::gradient, 1e18f));
  EXPECT_TRUE(adamw(3, &Arrays::weight, 3e38f));
  EXPECT_TRUE(adamw(3, &Arrays::weight, 65000.0f, true));
  EXPECT_TRUE(apply(3, &Arrays::weight, -3e38f));
}

TEST_P(Finite, OneElementAnywhereIsReported) {
  for (int64_t at = 0; at < kNumel; ++at) {
    for (const bool casts : {false, true}) {
      EXPECT_FALSE(adamw(at, &Arrays::gradient, kNan, casts)) << at;
      EXPECT_FALSE(apply(at, &Arrays::gradient, kNan, casts)) << at;
    }
    EXPECT_FALSE(adamw(at, &Arrays::gradient, -kInfinity)) << at;
    EXPECT_FALSE(apply(at, &Arrays::weight, kInfinity)) << at;
  }
}

TEST_P(Finite, EveryWrittenArrayIsLookedAt) {
  // Its square is infinite, and then the update is zero: the weight alone would say nothing.
  EXPECT_FALSE(adamw(20, &Arrays::gradient, 1e25f));
  EXPECT_FALSE(adamw(36, &Arrays::exp_avg_sq, kInfinity));
  EXPECT_FALSE(adamw(20, &Arrays::exp_avg, kInfinity));
  EXPECT_FALSE(adamw(36, &Arrays::weight, kInfinity));
  // Finite in the master, infinite in the copy.
  EXPECT_FALSE(adamw(20, &Arrays::weight, 1e5f, true));
  EXPECT_TRUE(adamw(20, &Arrays::weight, 1e5f, false));
  EXPECT_FALSE(apply(36, &Arrays::weight, 1e5f, true));
  EXPECT_TRUE(apply(36, &Arrays::weight, 1e5f, false));
}

TEST_P(Finite, StatesInBfloat16OverflowAsTheyAreRounded) {
  const auto run = [](float value) {
    Arrays a;
    std::vector<BFloat16> m(kNumel, BFloat16{0}), v(kNumel, BFloat16{0});
    a.gradient[9] = value;
    // Nothing but m = g and v = 0: betas of 0 and 1.
    return ops::adamw({1e-2, 0.0, 1.0 - 1e-16, 1e-8, 0.0, 1},
                      {a.weight.data(), a.gradient.data(), m.data(), v.data()}, kNumel, GetParam());
  };
  if (GetParam() == CpuKernels::kOneDnn) {
    EXPECT_THROW(run(1e18f), ValueError);  // it takes none
    return;
  }
  EXPECT_TRUE(run(1e18f));
  EXPECT_FALSE(run(3.4e38f));
}

TEST_P(Finite, LongArraysReportFromAnyThread) {
  constexpr int64_t kLong = 100003;
  for (const int64_t at : {int64_t{0}, int64_t{50000}, kLong - 1}) {
    std::vector<float> weight(kLong, 1), gradient(kLong, 1), m(kLong, 0), v(kLong, 0);
    gradient[at] = kNan;
    EXPECT_FALSE(ops::adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 1},
                            {weight.data(), gradient.data(), m.data(), v.data()}, kLong,
                            GetParam()));
    EXPECT_FALSE(
        apply_update({1e-2, 0.1, 1.0}, {weight.data(), gradient.data()}, kLong, GetParam()));
  }
}

INSTANTIATE_TEST_SUITE_P(OfElementwise, Finite,
                         ::testing::Values(CpuKernels::kReference, CpuKernels::kGeneric,
                                           CpuKernels::kAvx2, CpuKernels::kAvx512,
                                           CpuKernels::kAvx512Bf16, CpuKernels::kOneDnn),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace zeromuon::ops
