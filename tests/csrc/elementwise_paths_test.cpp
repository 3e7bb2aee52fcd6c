// Every path against the reference path, bit for bit: Note [Same bits everywhere].
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "csrc/ops/elementwise.h"

namespace zeromuon::ops {
namespace {

constexpr uint32_t kSpecial[] = {
    0x00000000, 0x80000000,              // zeros
    0x00000001, 0x80000001, 0x007fffff,  // denormals, the largest too
    0x00008000, 0x00018000, 0x80008001,  // denormals at bfloat16 ties
    0x00800000,                          // the smallest normal
    0x7f7fffff, 0xff7fffff,              // the largest
    0x7f7f7fff, 0x7f7f8000, 0x7f7f8001,  // around bfloat16's overflow
    0x7f800000, 0xff800000,              // infinities
    0x7f800001, 0xff812345, 0x7fbfffff,  // signalling NaNs
    0x7fc00000, 0xffc54321,              // quiet NaNs
    0x3f808000, 0x3f818000, 0x3f808001,  // bfloat16 ties and beside one
    0x477fe000, 0x477fefff, 0x477ff000,  // 65504, below 65520, 65520
    0x38800000, 0x387fffff, 0x387fe000,  // float16's smallest normal and below
    0x33000000, 0x33000001, 0x33800000,  // float16: half its smallest denormal, above, itself
    0x3f801000, 0x3f803000,              // float16 ties
    0x1e3ce508, 0x5e3ce508, 0xde3ce508,  // squares that underflow and overflow
};
constexpr int kSpecials = sizeof kSpecial / sizeof *kSpecial;

// Random values with a block of special ones, shifted so that arrays pair them differently.
std::vector<float> values(int64_t numel, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(numel);
  for (float& v : out) v = normal(generator);
  const int64_t block = std::min<int64_t>(numel / 2, kSpecials * 7);
  for (int64_t i = 0; i < block; ++i) {
    out[i] = float_of(kSpecial[(i * (seed % 5 + 1) + i / kSpecials + seed) % kSpecials]);
  }
  return out;
}

// An array of one dtype whose address is as misaligned as its type allows.
class Buffer {
 public:
  Buffer(const std::vector<float>& from, DType dtype, int64_t offset = 1)
      : dtype_(dtype), offset_(offset), numel_(from.size()), bytes_((numel_ + offset + 1) * 4) {
    encode_values(from.data(), typed(), numel_, CpuKernels::kReference);
  }
  Typed typed(int64_t at = 0) { return {bytes_.data() + (offset_ + at) * size_of(dtype_), dtype_}; }
  float* floats(int64_t at = 0) { return static_cast<float*>(typed(at).data); }

  // A NaN as it is, or without its payload and sign.
  std::vector<uint32_t> bits(bool payloads) {
    std::vector<float> wide(numel_);
    decode_values(typed(), wide.data(), numel_, CpuKernels::kReference);
    std::vector<uint32_t> out(numel_);
    for (int64_t i = 0; i < numel_; ++i) {
      const bool nan = wide[i] != wide[i];
      out[i] = nan && !payloads ? 0x7fc00000u : bits_of(wide[i]);
    }
    return out;
  }

 private:
  DType dtype_;
  int64_t offset_, numel_;
  std::vector<char> bytes_;
};

// How a call is cut and run.
struct Way {
  CpuKernels kernels = CpuKernels::kReference;
  int threads = 1;
  int64_t cut = 0;     // where a second call begins; 0: one call
  int64_t offset = 1;  // elements that arrays begin behind an aligned address
};

template <typename Body>
void in_pieces(const Way& way, int64_t numel, Body body) {
  omp_set_num_threads(way.threads);
  const int64_t cut = std::min(way.cut, numel);
  if (cut > 0) body(0, cut);
  body(cut, numel - cut);
  omp_set_num_threads(2);
}

using Bits = std::vector<std::vector<uint32_t>>;
constexpr DType kWide[] = {DType::kFloat32, DType::kBFloat16};
constexpr DType kAll[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

struct AdamWCase {
  DType gradient, state, low;  // low float32: none
  Decay decay;
};

Bits run_adamw(const AdamWCase& types, int64_t numel, const Way& way) {
  Buffer weight(values(numel, 1), DType::kFloat32, way.offset);
  Buffer gradient(values(numel, 2), types.gradient, way.offset);
  Buffer m(values(numel, 3), types.state, way.offset), v(values(numel, 4), types.state, way.offset);
  const bool has_low = types.low != DType::kFloat32;
  Buffer low(values(numel, 5), types.low, way.offset);
  const AdamWElement element(1e-2, 0.9, 0.95, 1e-8, 0.1, 3, types.decay, 0.37f);
  uint32_t bad = 0;
  in_pieces(way, numel, [&](int64_t at, int64_t n) {
    const AdamWArrays arrays{weight.floats(at), gradient.typed(at), m.typed(at), v.typed(at),
                             has_low ? low.typed(at) : Typed()};
    bad |= adamw(element, arrays, n, way.kernels) ? 0u : 1u;
  });
  if (has_low) {
    Buffer cast(std::vector<float>(weight.floats(), weight.floats() + numel), types.low);
    EXPECT_EQ(low.bits(true), cast.bits(true)) << "the low-precision copy is not the cast";
  }
  return {weight.bits(false), m.bits(false), v.bits(false), low.bits(false), {bad}};
}

Bits run_momentum(DType gradient_type, DType state, DType wire_type, bool nesterov, int64_t numel,
                  const Way& way) {
  Buffer gradient(values(numel, 2), gradient_type, way.offset);
  Buffer momentum(values(numel, 3), state, way.offset);
  Buffer wire(values(numel, 5), wire_type, way.offset);
  const MomentumElement element(MomentumKind::kEma, 0.95, nesterov, 0.37f);
  uint32_t bad = 0;
  in_pieces(way, numel, [&](int64_t at, int64_t n) {
    const MomentumArrays arrays{gradient.typed(at), momentum.typed(at), wire.typed(at)};
    bad |= update_momentum(element, arrays, n, way.kernels) ? 0u : 1u;
  });
  return {momentum.bits(false), wire.bits(false), {bad}};
}

Bits run_apply(DType update_type, DType low_type, Decay decay, int64_t numel, const Way& way) {
  Buffer weight(values(numel, 1), DType::kFloat32, way.offset);
  Buffer update(values(numel, 2), update_type, way.offset);
  Buffer low(values(numel, 5), low_type, way.offset);
  uint32_t bad = 0;
  in_pieces(way, numel, [&](int64_t at, int64_t n) {
    const Typed out = low_type == DType::kFloat32 ? Typed() : low.typed(at);
    const ApplyArrays arrays{weight.floats(at), update.typed(at), out};
    bad |= apply_update({1e-2, 0.1, 0.7, decay}, arrays, n, way.kernels) ? 0u : 1u;
  });
  return {weight.bits(false), low.bits(false), {bad}};
}

// Here a NaN's payload is part of the result.
Bits run_casts(DType type, int64_t numel, const Way& way) {
  Buffer from(values(numel, 1), DType::kFloat32, way.offset);
  Buffer to(values(numel, 2), type, way.offset);
  Buffer back(values(numel, 3), DType::kFloat32, way.offset);
  uint32_t bad = 0;
  in_pieces(way, numel, [&](int64_t at, int64_t n) {
    bad |= encode_values(from.floats(at), to.typed(at), n, way.kernels) ? 0u : 1u;
    decode_values(to.typed(at), back.floats(at), n, way.kernels);
  });
  return {to.bits(true), back.bits(true), {bad}};
}

// All results of one size, a list per type combination.
std::vector<Bits> run_all(int64_t numel, const Way& way) {
  std::vector<Bits> out;
  for (const DType gradient : kWide) {
    for (const DType state : kWide) {
      for (const DType other : kAll) {
        for (const Decay decay : {Decay::kDecoupled, Decay::kCautious, Decay::kCoupled}) {
          out.push_back(run_adamw({gradient, state, other, decay}, numel, way));
        }
        if (other == DType::kFloat16) continue;
        for (const bool nesterov : {false, true}) {
          out.push_back(run_momentum(gradient, state, other, nesterov, numel, way));
        }
      }
    }
    for (const DType low : kAll) {
      for (const Decay decay : {Decay::kDecoupled, Decay::kCautious}) {
        out.push_back(run_apply(gradient, low, decay, numel, way));
      }
    }
  }
  for (const DType type : kAll) out.push_back(run_casts(type, numel, way));
  return out;
}

class Path : public ::testing::TestWithParam<CpuKernels> {
 protected:
  void SetUp() override {
    if (!why_not(GetParam()).empty()) GTEST_SKIP() << why_not(GetParam());
  }
};

TEST_P(Path, GivesTheReferencesBitsForEveryTypeAndSize) {
  for (const int64_t numel : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1000}) {
    const auto expected = run_all(numel, {});
    for (const int64_t offset : {0, 1}) {
      const Way way{GetParam(), 1, 0, offset};
      EXPECT_TRUE(run_all(numel, way) == expected) << numel << " elements, offset " << offset;
    }
  }
}

TEST_P(Path, GivesTheReferencesBitsForAnyThreadsAndAnyCut) {
  constexpr int64_t kNumel = 70001;
  const auto expected = run_all(kNumel, {});
  for (const int threads : {1, 2, 3}) {
    const Way way{GetParam(), threads, std::vector<int64_t>{0, 16384, 33333}[threads - 1],
                  threads - 1};
    EXPECT_TRUE(run_all(kNumel, way) == expected) << threads << " threads, cut " << way.cut;
  }
}

TEST_P(Path, ALoneNanKeepsItsPayloadThroughTheArithmetic) {
  const auto run = [](CpuKernels kernels) {
    std::vector<float> weight(35, 1.0f), gradient(35, 1.0f), m(35, 0.0f), v(35, 0.0f);
    for (int i = 0; i < 35; ++i) gradient[i] = float_of(0x7f800001u + 0x111u * i);
    adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 3}, {weight.data(), gradient.data(), m.data(), v.data()}, 35,
          kernels);
    std::vector<uint32_t> bits;
    for (int i = 0; i < 35; ++i) bits.push_back(bits_of(weight[i]));
    return bits;
  };
  EXPECT_EQ(run(GetParam()), run(CpuKernels::kReference));
}

TEST_P(Path, AValueThatOverflowsOnlyWhenRoundedIsReported) {
  const auto run = [](int64_t at, DType state, DType wire_type) {
    std::vector<float> values(40, 1.0f), zeros(40, 0.0f);
    values[at] = 3.4e38f;
    Buffer gradient(values, DType::kFloat32), momentum(zeros, state), wire(zeros, wire_type);
    return update_momentum({MomentumKind::kHeavyBall, 0.0, false},
                           {gradient.typed(), momentum.typed(), wire.typed()}, 40, GetParam());
  };
  for (const int64_t at : {0, 15, 16, 39}) {
    EXPECT_TRUE(run(at, DType::kFloat32, DType::kFloat32)) << at;
    EXPECT_FALSE(run(at, DType::kFloat32, DType::kBFloat16)) << "the wire, " << at;
    EXPECT_FALSE(run(at, DType::kBFloat16, DType::kFloat32)) << "the momentum, " << at;
  }
}

// Every bit pattern that 16 bits hold, and all float32 around the halves of their last place.
TEST_P(Path, CastsAgreeWithTheReferenceOnEveryHalf) {
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<uint16_t> every(1 << 16);
    for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<uint16_t>(i);
    std::vector<float> wide(every.size()), expected(every.size());
    decode_values({every.data(), type}, wide.data(), every.size(), GetParam());
    decode_values({every.data(), type}, expected.data(), every.size(), CpuKernels::kReference);
    EXPECT_EQ(0, std::memcmp(wide.data(), expected.data(), wide.size() * sizeof(float)));
    const uint32_t tie = type == DType::kBFloat16 ? 0x8000u : 0x1000u;
    for (const uint32_t beside : {0u, 1u, tie - 1, tie, tie + 1}) {
      std::vector<float> near(expected);
      for (float& x : near) x = float_of(bits_of(x) + beside);
      std::vector<uint16_t> got(near.size()), want(near.size());
      const bool finite = encode_values(near.data(), {got.data(), type}, near.size(), GetParam());
      EXPECT_EQ(finite, encode_values(near.data(), {want.data(), type}, near.size(),
                                      CpuKernels::kReference));
      EXPECT_EQ(got, want) << name_of(type) << " + " << beside;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Path,
                         ::testing::Values(CpuKernels::kReference, CpuKernels::kGeneric,
                                           CpuKernels::kAvx2, CpuKernels::kAvx512,
                                           CpuKernels::kAvx512Bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

class OneDnn : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = why_not(CpuKernels::kOneDnn);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_F(OneDnn, GivesTheSameBitsForAnyNumberOfThreads) {
  constexpr int64_t kNumel = 70001;
  const AdamWCase types{DType::kFloat32, DType::kFloat32, DType::kBFloat16, Decay::kCoupled};
  const auto adamw_bits = run_adamw(types, kNumel, {CpuKernels::kOneDnn, 1});
  const auto momentum_bits = run_momentum(DType::kFloat32, DType::kFloat32, DType::kBFloat16, true,
                                          kNumel, {CpuKernels::kOneDnn, 1});
  for (const int threads : {2, 3}) {
    const Way way{CpuKernels::kOneDnn, threads};
    EXPECT_TRUE(run_adamw(types, kNumel, way) == adamw_bits);
    EXPECT_TRUE(run_momentum(DType::kFloat32, DType::kFloat32, DType::kBFloat16, true, kNumel,
                             way) == momentum_bits);
  }
}

TEST_F(OneDnn, MomentumAndItsFlagStayWithTheReference) {
  constexpr int64_t kNumel = 40001;
  const MomentumElement element(MomentumKind::kEma, 0.95, true, 0.37f);
  for (const int64_t bad : {int64_t{-1}, int64_t{5}, kNumel - 1}) {
    std::vector<float> gradient(kNumel), m(kNumel), wire(kNumel);
    for (int64_t i = 0; i < kNumel; ++i) gradient[i] = 1e-3f * static_cast<float>(i % 1001) - 0.3f;
    for (int64_t i = 0; i < kNumel; ++i) m[i] = 1e-3f * static_cast<float>(i % 777) - 0.4f;
    if (bad >= 0) gradient[bad] = float_of(0x7f800000u);
    auto expected_m = m, expected_wire = wire;
    const bool expected =
        update_momentum(element, {gradient.data(), expected_m.data(), expected_wire.data()}, kNumel,
                        CpuKernels::kReference);
    EXPECT_EQ(update_momentum(element, {gradient.data(), m.data(), wire.data()}, kNumel,
                              CpuKernels::kOneDnn),
              expected);
    for (int64_t i = 0; i < kNumel; ++i) {
      if (i == bad) continue;
      ASSERT_NEAR(m[i], expected_m[i], 1e-7) << i;
      ASSERT_NEAR(wire[i], expected_wire[i], 1e-7) << i;
    }
  }
}

TEST_F(OneDnn, RefusesTypesAndTheDecayThatItDoesNotTake) {
  float f[4] = {};
  BFloat16 b[4] = {};
  const AdamWElement element(1e-2, 0.9, 0.95, 1e-8, 0.1, 3);
  EXPECT_THROW(adamw(element, {f, b, f, f}, 4, CpuKernels::kOneDnn), std::invalid_argument);
  EXPECT_THROW(adamw(element, {f, f, b, b}, 4, CpuKernels::kOneDnn), std::invalid_argument);
  const AdamWElement cautious(1e-2, 0.9, 0.95, 1e-8, 0.1, 3, Decay::kCautious);
  EXPECT_THROW(adamw(cautious, {f, f, f, f}, 4, CpuKernels::kOneDnn), std::invalid_argument);
  EXPECT_THROW(update_momentum({MomentumKind::kEma, 0.9, true}, {b, f, f}, 4, CpuKernels::kOneDnn),
               std::invalid_argument);
}

}  // namespace
}  // namespace zeromuon::ops
