// AdamW and apply of every path against double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/elementwise.h"
#include "tests/csrc/random_values.h"

namespace zeromuon::ops {
namespace {

constexpr double kB1 = 0.9, kB2 = 0.95, kEps = 1e-8, kDecay = 0.1;

// Distance in units of the last place of `scale`.
double ulps(double got, double exact, float scale) {
  const float next = std::nextafter(std::fabs(scale), std::numeric_limits<float>::infinity());
  return std::fabs(got - exact) / (static_cast<double>(next) - std::fabs(scale));
}

double decayed(double weight, double factor, double update, Decay kind) {
  return kind == Decay::kCautious && update * weight < 0 ? weight : weight * factor;
}

struct Exact {
  Decay kind;
  std::vector<double> weight, m, v;

  Exact(const std::vector<float>& start, Decay decay)
      : kind(decay), weight(start.begin(), start.end()), m(start.size()), v(start.size()) {}

  void step(const std::vector<double>& gradient, double lr, int t) {
    for (size_t i = 0; i < weight.size(); ++i) {
      const double g = gradient[i];
      m[i] = kB1 * m[i] + (1 - kB1) * g;
      v[i] = kB2 * v[i] + (1 - kB2) * g * g;
      const double mean = m[i] / (1 - std::pow(kB1, t)), square = v[i] / (1 - std::pow(kB2, t));
      const double update = mean / (std::sqrt(square) + kEps);
      weight[i] = decayed(weight[i], 1 - lr * kDecay, update, kind) - lr * update;
    }
  }
};

// A gradient as it is given, and what it means.
struct Gradient {
  std::vector<float> fp32;
  std::vector<BFloat16> bf16;
  std::vector<double> meaning;

  Gradient(int64_t numel, unsigned seed, float scale, bool rounded)
      : fp32(random_values(numel, seed)), bf16(rounded ? numel : 0), meaning(numel) {
    for (int64_t i = 0; i < numel; ++i) {
      if (rounded) encode(fp32[i], bf16[i]);
      meaning[i] = static_cast<double>(rounded ? decode(bf16[i]) : fp32[i]) * scale;
    }
  }
  ConstTyped typed() const {
    return bf16.empty() ? ConstTyped(fp32.data()) : ConstTyped(bf16.data());
  }
};

double worst(const std::vector<float>& got, const std::vector<double>& exact) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error = std::max(error, std::fabs(got[i] - exact[i]));
    largest = std::max(largest, std::fabs(exact[i]));
  }
  return error / largest;
}

// bf16: the gradient.
struct Given {
  bool bf16;
  float scale;
  Decay decay;
};

class Accuracy : public ::testing::TestWithParam<CpuKernels> {
 protected:
  void SetUp() override {
    if (!why_not(GetParam()).empty()) GTEST_SKIP() << why_not(GetParam());
  }
  // What these kernels take of all that AdamW may be given.
  static std::vector<Given> all_given() {
    std::vector<Given> out;
    for (const bool bf16 : {false, true}) {
      for (const float scale : {1.0f, 1.0f / 1024, 0.3f}) {
        for (const Decay decay : {Decay::kDecoupled, Decay::kCautious}) {
          const bool fused = GetParam() != CpuKernels::kOneDnn;
          if (fused || (!bf16 && decay == Decay::kDecoupled)) out.push_back({bf16, scale, decay});
        }
      }
    }
    return out;
  }
};

TEST_P(Accuracy, OneStepIsWithinFourUlpOfDouble) {
  constexpr int64_t kNumel = 50001;
  constexpr double kLr = 1e-3;
  for (const auto& [bf16, scale, decay] : all_given()) {
    const auto start = random_values(kNumel, 4);
    const Gradient gradient(kNumel, 5, scale, bf16);
    auto weight = start;
    std::vector<float> m(kNumel, 0), v(kNumel, 0);
    adamw({kLr, kB1, kB2, kEps, kDecay, 1, decay, scale},
          {weight.data(), gradient.typed(), m.data(), v.data()}, kNumel, GetParam());
    Exact exact(start, decay);
    exact.step(gradient.meaning, kLr, 1);
    for (int64_t i = 0; i < kNumel; ++i) {
      const auto after = static_cast<float>(std::fabs(exact.weight[i]));
      const float larger = std::max(std::fabs(start[i]), after);
      ASSERT_LE(ulps(weight[i], exact.weight[i], larger), 4.0) << i << ", scale " << scale;
    }
  }
}

TEST_P(Accuracy, TenStepsStayWithinOneMillionthOfDouble) {
  constexpr int64_t kNumel = 5003;
  constexpr double kLr = 1e-2;
  for (const auto& [bf16, scale, decay] : all_given()) {
    auto weight = random_values(kNumel, 6);
    Exact exact(weight, decay);
    std::vector<float> m(kNumel, 0), v(kNumel, 0);
    for (int step = 1; step <= 10; ++step) {
      const Gradient gradient(kNumel, 100 + step, scale, bf16);
      adamw({kLr, kB1, kB2, kEps, kDecay, step, decay, scale},
            {weight.data(), gradient.typed(), m.data(), v.data()}, kNumel, GetParam());
      exact.step(gradient.meaning, kLr, step);
    }
    EXPECT_LE(worst(weight, exact.weight), 1e-6);
    EXPECT_LE(worst(m, exact.m), 1e-6);
    EXPECT_LE(worst(v, exact.v), 1e-6);
  }
}

TEST_P(Accuracy, ApplyIsWithinFourUlpOfDouble) {
  constexpr int64_t kNumel = 50001;
  constexpr double kLr = 1e-2, kScale = 0.7;
  const auto start = random_values(kNumel, 7), update = random_values(kNumel, 8);
  for (const Decay decay : {Decay::kDecoupled, Decay::kCautious}) {
    auto weight = start;
    apply_update({kLr, kDecay, kScale, decay}, {weight.data(), update.data()}, kNumel, GetParam());
    for (int64_t i = 0; i < kNumel; ++i) {
      const double exact =
          decayed(start[i], 1 - kLr * kDecay, update[i], decay) - kLr * kScale * update[i];
      const float larger = std::max(std::fabs(start[i]), static_cast<float>(std::fabs(exact)));
      ASSERT_LE(ulps(weight[i], exact, larger), 4.0) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Accuracy,
                         ::testing::Values(CpuKernels::kReference, CpuKernels::kGeneric,
                                           CpuKernels::kAvx2, CpuKernels::kAvx512,
                                           CpuKernels::kAvx512Bf16, CpuKernels::kOneDnn),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace zeromuon::ops
