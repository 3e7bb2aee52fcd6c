#include "csrc/ops/elementwise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "csrc/base/check.h"
#include "tests/csrc/random_values.h"

namespace zeromuon::ops {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(Momentum, MovingAverageAndHeavyBallFollowTheirFormulas) {
  const std::vector<float> gradient = {1.0f, -2.0f};
  std::vector<float> momentum = {0.5f, 4.0f}, mixed(2);
  update_momentum({MomentumKind::kEma, 0.75, true},
                  {gradient.data(), momentum.data(), mixed.data()}, 2);
  EXPECT_EQ(momentum, (std::vector<float>{0.625f, 2.5f}));
  EXPECT_EQ(mixed, (std::vector<float>{0.71875f, 1.375f}));
  update_momentum({MomentumKind::kEma, 0.75, false},
                  {gradient.data(), momentum.data(), mixed.data()}, 2);
  EXPECT_EQ(mixed, momentum);
  momentum = {0.5f, 4.0f};
  update_momentum({MomentumKind::kHeavyBall, 0.75, true},
                  {gradient.data(), momentum.data(), mixed.data()}, 2);
  EXPECT_EQ(momentum, (std::vector<float>{1.375f, 1.0f}));
  EXPECT_EQ(mixed, (std::vector<float>{2.03125f, -1.25f}));
}

TEST(Momentum, HeavyBallIsTheMovingAverageInOtherUnits) {
  const auto gradient = random_values(1000, 1);
  std::vector<float> ema(1000, 0), ball(1000, 0), u(1000), v(1000);
  for (int step = 0; step < 5; ++step) {
    update_momentum({MomentumKind::kEma, 0.9, true}, {gradient.data(), ema.data(), u.data()}, 1000);
    update_momentum({MomentumKind::kHeavyBall, 0.9, true}, {gradient.data(), ball.data(), v.data()},
                    1000);
  }
  for (int i = 0; i < 1000; ++i) EXPECT_NEAR(u[i], v[i] * 0.1f, 1e-6);
}

TEST(Momentum, ANonFiniteValueIsReportedWhereverItStands) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const int64_t at : {int64_t{0}, int64_t{16383}, int64_t{16384}, int64_t{99999}}) {
      auto gradient = random_values(100000, 2);
      std::vector<float> momentum(gradient.size(), 0), wire(gradient.size());
      const MomentumElement element(MomentumKind::kEma, 0.9, true);
      const MomentumArrays arrays{gradient.data(), momentum.data(), wire.data()};
      EXPECT_TRUE(update_momentum(element, arrays, 100000));
      gradient[at] = bad;
      EXPECT_FALSE(update_momentum(element, arrays, 100000));
    }
  }
}

TEST(Wire, BFloat16RoundsToNearestEvenAndKeepsSpecialValues) {
  const std::vector<float> values = {1.0f,  1.00390625f, 1.01171875f, -2.5f,  kInf,
                                     -kInf, 0.0f,        -0.0f,       3.4e38f};
  std::vector<BFloat16> wire(values.size());
  std::vector<float> back(values.size());
  EXPECT_FALSE(encode_wire(values.data(), wire.data(), values.size()));
  decode_wire(wire.data(), back.data(), values.size());
  EXPECT_EQ(back[1], 1.0f);       // a tie, to even
  EXPECT_EQ(back[2], 1.015625f);  // a tie, to even
  EXPECT_EQ(back[3], -2.5f);
  EXPECT_EQ(back[4], kInf);
  EXPECT_EQ(back[5], -kInf);
  EXPECT_TRUE(std::signbit(back[7]));
  EXPECT_EQ(back[8], kInf);  // above the largest bfloat16
  BFloat16 nan;
  encode(float_of(0x7f800001u), nan);  // a NaN whose payload is all in the lost half
  EXPECT_TRUE(std::isnan(decode(nan)));
}

TEST(Wire, Float32TravelsUnchanged) {
  const auto values = random_values(70000, 3);
  std::vector<float> wire(values.size()), back(values.size());
  EXPECT_TRUE(encode_wire(values.data(), wire.data(), values.size()));
  decode_wire(wire.data(), back.data(), values.size());
  EXPECT_TRUE(same_bits(values, back));
}

TEST(Apply, DecaysAndSubtractsTheScaledUpdate) {
  std::vector<float> weight = {1.0f, -2.0f};
  const std::vector<float> update = {0.5f, 1.0f};
  apply_update({0.5, 0.25, 2.0}, {weight.data(), update.data()}, 2);
  EXPECT_EQ(weight, (std::vector<float>{0.375f, -2.75f}));
}

// Where update*weight is negative the decay is left out.
TEST(Apply, CautiousDecaySparesWeightsThatTheUpdateMovesAwayFromZero) {
  std::vector<float> weight = {1.0f, -2.0f, 1.0f, -2.0f, 4.0f, 0.0f};
  const std::vector<float> update = {0.5f, 1.0f, -0.5f, -1.0f, 0.0f, 3.0f};
  apply_update({0.5, 0.25, 2.0, Decay::kCautious}, {weight.data(), update.data()}, 6);
  EXPECT_EQ(weight, (std::vector<float>{0.375f, -3.0f, 1.5f, -0.75f, 3.5f, -3.0f}));
}

TEST(AdamW, CautiousDecaySparesWeightsThatTheUpdateMovesAwayFromZero) {
  std::vector<float> weight = {1.0f, -1.0f, 1.0f, 2.0f}, m(4), v(4);
  const std::vector<float> gradient = {4.0f, 4.0f, -4.0f, 0.0f};  // updates 0.5, 0.5, -0.5, 0
  adamw({0.5, 0.0, 0.0, 4.0, 0.5, 1, Decay::kCautious},
        {weight.data(), gradient.data(), m.data(), v.data()}, 4);
  EXPECT_EQ(weight, (std::vector<float>{0.5f, -1.25f, 1.25f, 1.5f}));
}

TEST(AdamW, CoupledDecayIsAdamOnTheGradientPlusTheDecayedWeight) {
  constexpr int64_t kNumel = 1000;
  const auto start = random_values(kNumel, 4), gradient = random_values(kNumel, 5);
  auto coupled = start, plain = start, sum = gradient;
  for (int64_t i = 0; i < kNumel; ++i) sum[i] = gradient[i] + 0.25f * start[i];
  std::vector<float> m(kNumel, 0), v(kNumel, 0), plain_m(kNumel, 0), plain_v(kNumel, 0);
  adamw({1e-3, 0.9, 0.95, 1e-8, 0.25, 1, Decay::kCoupled},
        {coupled.data(), gradient.data(), m.data(), v.data()}, kNumel);
  adamw({1e-3, 0.9, 0.95, 1e-8, 0.0, 1}, {plain.data(), sum.data(), plain_m.data(), plain_v.data()},
        kNumel);
  EXPECT_EQ(coupled, plain);
  EXPECT_EQ(m, plain_m);
  EXPECT_EQ(v, plain_v);
}

// See Note [Same bits everywhere].
TEST(Elementwise, GivesTheSameBitsForAnyThreadsAndAnyCut) {
  constexpr int64_t kNumel = 200001;
  const auto start = random_values(kNumel, 7), gradient = random_values(kNumel, 8);
  const auto run = [&](int threads, int64_t cut) {
    omp_set_num_threads(threads);
    std::vector<float> weight = start, m(kNumel, 0), v(kNumel, 0), momentum(kNumel, 0),
                       wire(kNumel);
    for (int64_t begin : {int64_t{0}, cut}) {
      const int64_t n = begin == 0 ? cut : kNumel - cut;
      adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 3},
            {&weight[begin], &gradient[begin], &m[begin], &v[begin]}, n);
      update_momentum({MomentumKind::kEma, 0.95, true},
                      {&gradient[begin], &momentum[begin], &wire[begin]}, n);
      apply_update({1e-2, 0.1, 0.7}, {&weight[begin], &wire[begin]}, n);
    }
    weight.insert(weight.end(), wire.begin(), wire.end());
    weight.insert(weight.end(), v.begin(), v.end());
    return weight;
  };
  const auto expected = run(1, kNumel / 2);
  for (const int threads : {1, 2, 3}) {
    for (const int64_t cut : {int64_t{1}, int64_t{16384}, int64_t{50003}, kNumel - 7}) {
      EXPECT_TRUE(same_bits(expected, run(threads, cut))) << threads << " threads, cut " << cut;
    }
  }
  omp_set_num_threads(2);
}

TEST(Elementwise, AnEmptyRangeIsFine) {
  EXPECT_TRUE(update_momentum({MomentumKind::kEma, 0.9, true}, {}, 0));
  EXPECT_TRUE(encode_wire(nullptr, {nullptr, DType::kBFloat16}, 0));
}

TEST(Elementwise, ElementTypesThatAKernelDoesNotTakeAreRefusedByName) {
  float f[4] = {};
  BFloat16 b[4] = {};
  Float16 h[4] = {};
  const AdamWElement adam(1e-2, 0.9, 0.95, 1e-8, 0.1, 3);
  const auto message = [](auto body) -> std::string {
    try {
      body();
    } catch (const ValueError& error) {
      return error.what();
    }
    return "accepted";
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message([&] { encode_wire(f, h, 4); }), HasSubstr("wire in float32 or bfloat16"));
  EXPECT_THAT(message([&] { decode_wire(h, f, 4); }), HasSubstr("got float16"));
  EXPECT_THAT(message([&] { adamw(adam, {f, h, f, f}, 4); }), HasSubstr("the gradient in"));
  EXPECT_THAT(message([&] { adamw(adam, {f, f, f, b}, 4); }), HasSubstr("in one dtype"));
  EXPECT_THAT(message([&] { adamw(adam, {f, f, f, f, f}, 4); }), HasSubstr("low-precision"));
  EXPECT_THAT(message([&] { apply_update({1, 0, 1}, {f, h}, 4); }), HasSubstr("the update in"));
}

TEST(CpuKernels, ANameThatIsNotOneListsThoseThatAre) {
  for (int i = 0; i < kCpuKernels; ++i) {
    const auto kernels = static_cast<CpuKernels>(i);
    EXPECT_EQ(parse_cpu_kernels(name_of(kernels)), kernels);
  }
  try {
    parse_cpu_kernels("avx");
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_STREQ(error.what(),
                 "cpu_kernels: expected auto, reference, generic, avx2, avx512, "
                 "avx512_bf16 or onednn, got \"avx\"");
  }
}

TEST(CpuKernels, AutoIsAPathThatCanRunAndOthersSayWhyNot) {
  const CpuKernels chosen = resolve(CpuKernels::kAuto);
  EXPECT_EQ(why_not(chosen), "");
  EXPECT_EQ(why_not(CpuKernels::kAuto), "");
  for (int i = 0; i < kCpuKernels; ++i) {
    const auto kernels = static_cast<CpuKernels>(i);
    if (why_not(kernels).empty()) continue;
    try {
      resolve(kernels);
      FAIL() << name_of(kernels) << " accepted";
    } catch (const ValueError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr(why_not(kernels)));
      EXPECT_THAT(error.what(), ::testing::HasSubstr(concat("would use ", name_of(chosen))));
    }
  }
}

}  // namespace
}  // namespace zeromuon::ops
