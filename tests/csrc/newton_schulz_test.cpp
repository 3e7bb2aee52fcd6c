#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/base/check.h"
#include "tests/csrc/newton_schulz_targets.h"

namespace zeromuon::ops {
namespace {

using enum NewtonSchulzForm;

NewtonSchulzPlan plan_of(const at::Tensor& input, const CoefficientSet& set, NewtonSchulzForm form,
                         NewtonSchulzDType dtype, const ProductTarget& target) {
  return plan_newton_schulz(input.size(0), input.size(1), {form, dtype, set}, target);
}

at::Tensor run(const at::Tensor& input, const CoefficientSet& set, NewtonSchulzForm form,
               const ProductTarget& target = this_cpu(),
               NewtonSchulzDType dtype = NewtonSchulzDType::kFloat32) {
  return run(plan_of(input, set, form, dtype, target), {input})[0];
}

at::Tensor run(const at::Tensor& input, NewtonSchulzForm form = kAuto) {
  return run(input, find_coefficient_set("jordan"), form);
}

using Shapes = std::vector<std::pair<int64_t, int64_t>>;

// Every set takes every path of these; 130 is more than one tile.
const Shapes kSmallShapes = {{1, 1}, {1, 7}, {7, 1}, {2, 3}, {33, 64}, {130, 130}};

// The sets differ by their figures only, so of each kind of scaling one is enough for many tiles.
const Shapes kLargeShapes = {{384, 96}, {96, 700}, {513, 300}, {256, 256}, {512, 256}};

// A matrix of rank one has its singular value at 1, where cans amplifies rounding 6e4 times. Gram
// on matrices that are nearly square, where "auto" does not take it, amplifies the rounding of R.
double bar(const CoefficientSet& set, int64_t rows, int64_t cols, NewtonSchulzForm form) {
  if (set.name == "cans") return 1e-2;
  const bool wide = 2 * std::max(rows, cols) >= 3 * std::min(rows, cols);
  return form == kGram && !wide ? 5e-3 : 1e-3;
}

void expect_the_definition(const CoefficientSet& set, const Shapes& shapes,
                           const std::vector<ProductTarget>& targets) {
  for (const auto& [rows, cols] : shapes) {
    const at::Tensor u = at::randn({rows, cols}), expected = reference(u, set);
    for (const auto form : {kStandard, kGram, kGramRestarts}) {
      for (const ProductTarget& target : targets) {
        EXPECT_LE(relative(run(u, set, form, target), expected), bar(set, rows, cols, form))
            << set.name << " " << rows << "x" << cols << " " << name_of(form) << " "
            << target.name();
      }
    }
  }
}

TEST(NewtonSchulz, EverySetAndFormMatchesTheDefinitionInDouble) {
  at::manual_seed(1);
  for (const CoefficientSet& set : coefficient_sets()) {
    expect_the_definition(set, kSmallShapes, cpu_targets());
    expect_the_definition(set, kLargeShapes, {this_cpu()});
  }
}

TEST(NewtonSchulz, EveryFormOnEveryTargetMatchesTheDefinitionOnManyTiles) {
  at::manual_seed(12);
  for (const char* name : {"jordan", "aol_4"}) {
    expect_the_definition(find_coefficient_set(name), kLargeShapes, cpu_targets());
  }
}

TEST(NewtonSchulz, GramAgreesWithStandardOnAFlatAndOnASteepSpectrum) {
  at::manual_seed(2);
  const at::Tensor gaussian = at::randn({128, 512});
  const at::Tensor left = std::get<0>(at::linalg_qr(at::randn({128, 128})));
  const at::Tensor right = std::get<0>(at::linalg_qr(at::randn({512, 128})));
  const at::Tensor steep = (left * at::logspace(0, -3, 128)).matmul(right.t()).contiguous();
  for (const at::Tensor& u : {gaussian, steep}) {
    EXPECT_LE(relative(run(u, kGram), run(u, kStandard)), 5e-4);
  }
}

TEST(NewtonSchulz, TheTransposeOfAnInputGivesTheTransposeOfTheResult) {
  at::manual_seed(3);
  const at::Tensor u = at::randn({96, 300});
  EXPECT_LE(relative(run(u.t().contiguous()).t(), run(u)), 1e-5);
}

TEST(NewtonSchulz, IsScaleFreeFromTinyToHuge) {
  at::manual_seed(4);
  const at::Tensor u = at::randn({64, 96});
  const at::Tensor expected = run(u);
  for (const double scale : {1e-30, 1e-8, 1e15}) {
    EXPECT_LE(relative(run(u * scale), expected), 1e-5) << scale;
  }
}

TEST(NewtonSchulz, AZeroMatrixStaysZero) {
  EXPECT_TRUE(run(at::zeros({5, 9})).eq(0).all().item<bool>());
}

TEST(NewtonSchulz, ANonFiniteInputNeverGivesAFiniteResult) {
  at::Tensor u = at::ones({4, 6});
  u[1][2] = std::nan("");
  EXPECT_FALSE(at::isfinite(run(u)).any().item<bool>());
}

double largest_singular_value(const at::Tensor& matrix) {
  return at::linalg_svdvals(matrix).max().item<double>();
}

at::Tensor with_spectrum(int64_t rows, int64_t cols, double decades) {
  const at::Tensor left = std::get<0>(at::linalg_qr(at::randn({rows, rows})));
  const at::Tensor right = std::get<0>(at::linalg_qr(at::randn({cols, rows})));
  return (left * at::logspace(0, -decades, rows)).matmul(right.t()).contiguous();
}

// On a CPU without bf16 hardware the libtorch products stand in: same plan, same rounding.
ProductTarget bfloat16_target() { return this_cpu().has_bfloat16() ? this_cpu() : cuda_target(); }

TEST(NewtonSchulz, BFloat16ProductsKeepTheSpectrumOfTheSetsThatAreSafeForTheForm) {
  at::manual_seed(8);
  for (const CoefficientSet& set : coefficient_sets()) {
    if (set.bfloat16 == RoundedUse::kNone) continue;
    for (const auto& u :
         {at::randn({128, 512}), with_spectrum(128, 512, 3), with_spectrum(128, 512, 5)}) {
      const at::Tensor exact = reference(u, set);
      const double largest = largest_singular_value(exact);
      for (const auto form : {kStandard, kGram, kGramRestarts}) {
        if (form != kStandard && set.bfloat16 != RoundedUse::kEveryForm) continue;
        const at::Tensor got = run(u, set, form, bfloat16_target(), NewtonSchulzDType::kBFloat16);
        EXPECT_NEAR(largest_singular_value(got), largest, 0.05) << set.name << " " << name_of(form);
        EXPECT_LE(relative(got, exact), 0.13) << set.name << " " << name_of(form);
      }
    }
  }
}

// Also of an X whose entries are those of a far larger matrix: Note [Units].
void expect_float16_keeps_the_spectrum(const CoefficientSet& set, NewtonSchulzForm form,
                                       const at::Tensor& u) {
  for (const double larger : {1.0, 16.0, 128.0}) {
    CoefficientSet divided = set;
    divided.safety *= larger;
    const at::Tensor exact = reference(u, divided);
    const auto plan = plan_of(u, divided, form, NewtonSchulzDType::kFloat16, cuda_target());
    ASSERT_EQ(plan.dtype, DType::kFloat16);
    const at::Tensor got = run(plan, {u})[0];
    EXPECT_NEAR(largest_singular_value(got), largest_singular_value(exact), 0.05) << set.name;
    EXPECT_LE(relative(got, exact), 0.13) << set.name << " " << name_of(form) << " " << larger;
  }
}

TEST(NewtonSchulz, Float16ProductsKeepTheSpectrumOfEverySetInTheFormsThatItIsAllowed) {
  at::manual_seed(8);
  const auto inputs = {at::randn({128, 512}), with_spectrum(128, 512, 3),
                       with_spectrum(128, 512, 5)};
  int seen = 0;
  for (const CoefficientSet& set : coefficient_sets()) {
    for (const auto form : {kStandard, kGram, kGramRestarts}) {
      const auto least = form == kStandard ? RoundedUse::kStandardForm
                         : form == kGram   ? RoundedUse::kEveryForm
                                           : RoundedUse::kRestarts;
      if (set.float16 < least || !can_be_float16(set, form)) continue;
      for (const auto& u : inputs) expect_float16_keeps_the_spectrum(set, form, u);
      ++seen;
    }
  }
  EXPECT_GE(seen, 20);  // of 27
}

TEST(NewtonSchulz, TriplesThatLeaveFloat16AreMultipliedInFloat32) {
  const CoefficientSet steep = custom_coefficient_set(std::vector<Triple>(5, {8.0, -20.0, 13.0}));
  const CoefficientSet tame = custom_coefficient_set(std::vector<Triple>(3, {2.0, -1.5, 0.5}));
  const auto dtype_of = [](const CoefficientSet& set, NewtonSchulzForm form) {
    return plan_newton_schulz(128, 512, {form, NewtonSchulzDType::kFloat16, set}, cuda_target())
        .dtype;
  };
  EXPECT_EQ(dtype_of(steep, kStandard), DType::kFloat32);
  EXPECT_EQ(dtype_of(tame, kStandard), DType::kFloat16);
  EXPECT_EQ(dtype_of(tame, kGramRestarts), DType::kFloat16);
}

TEST(NewtonSchulz, Float16WithoutAGpuIsRefused) {
  const NewtonSchulzRequest request{kAuto, NewtonSchulzDType::kFloat16,
                                    find_coefficient_set("jordan")};
  try {
    plan_newton_schulz(64, 64, request, this_cpu());
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("float16 needs a GPU"), std::string::npos);
  }
}

TEST(NewtonSchulz, BFloat16ProductsAreNearFloat32Ones) {
  at::manual_seed(9);
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{128, 128}, {96, 700}, {700, 96}, {513, 300}}) {
    const at::Tensor u = at::randn({rows, cols});
    const CoefficientSet& set = find_coefficient_set("jordan");
    for (const auto form : {kStandard, kGram, kGramRestarts}) {
      EXPECT_LE(relative(run(u, set, form, bfloat16_target(), NewtonSchulzDType::kBFloat16),
                         run(u, set, kStandard)),
                6e-2)
          << rows << "x" << cols << " " << name_of(form);
    }
  }
}

// Note [Same bits everywhere]: with any number of threads, alone or among others, one at a time or
// several at once.
void expect_the_same_bits(const Shapes& shapes, int matrices,
                          const std::vector<std::pair<int, int>>& threads_and_lanes) {
  for (const auto& [rows, cols] : shapes) {
    std::vector<at::Tensor> inputs;
    for (int i = 0; i < matrices; ++i) inputs.push_back(at::randn({rows, cols}));
    for (const auto form : {kStandard, kGram, kGramRestarts}) {
      for (const auto dtype : {NewtonSchulzDType::kFloat32, NewtonSchulzDType::kBFloat16}) {
        if (dtype == NewtonSchulzDType::kBFloat16 && !this_cpu().has_bfloat16()) continue;
        const auto plan =
            plan_of(inputs[0], find_coefficient_set("jordan"), form, dtype, this_cpu());
        omp_set_num_threads(1);
        std::vector<at::Tensor> alone;
        for (const at::Tensor& u : inputs) alone.push_back(run(plan, {u})[0]);
        for (const auto& [threads, lanes] : threads_and_lanes) {
          omp_set_num_threads(threads);
          const auto together = run(plan, inputs, lanes);
          for (int i = 0; i < matrices; ++i) {
            EXPECT_TRUE(alone[i].equal(together[i]))
                << plan.arithmetic() << ", " << threads << " threads, " << lanes << " lanes";
          }
        }
      }
    }
  }
  omp_set_num_threads(2);
}

TEST(NewtonSchulz, GivesTheSameBitsForAnyThreadsLanesAndCompany) {
  at::manual_seed(5);
  std::vector<std::pair<int, int>> all;
  for (const int threads : {1, 2, 3}) {
    for (const int lanes : {1, 2, 3}) all.emplace_back(threads, lanes);
  }
  expect_the_same_bits({{1, 7}, {33, 64}, {130, 130}, {384, 96}, {96, 300}}, 5, all);
  expect_the_same_bits({{96, 700}, {600, 520}, {256, 512}}, 3, {{1, 3}, {2, 1}, {3, 2}, {3, 3}});
}

TEST(NewtonSchulz, TheBatchedLibtorchProductsAgreeWithTheTiledOnes) {
  at::manual_seed(6);
  for (const char* name : {"jordan", "cubic", "aol_4"}) {
    const CoefficientSet& set = find_coefficient_set(name);
    Shapes shapes = kSmallShapes;
    if (set.name == "jordan") shapes.insert(shapes.end(), kLargeShapes.begin(), kLargeShapes.end());
    for (const auto& [rows, cols] : shapes) {
      std::vector<at::Tensor> inputs;
      for (int i = 0; i < 11; ++i) inputs.push_back(at::randn({rows, cols}));
      inputs[3].zero_();
      for (const auto form : {kStandard, kGram, kGramRestarts}) {
        const auto plan = plan_of(inputs[0], set, form, NewtonSchulzDType::kFloat32, cuda_target());
        EXPECT_EQ(plan.batch, 8);
        const auto outputs = run(plan, inputs);
        for (int i = 0; i < 11; ++i) {
          const at::Tensor tiled = run(inputs[i], set, form);
          EXPECT_LE((outputs[i] - tiled).norm().item<double>(),
                    bar(set, rows, cols, form) * std::max(1.0, tiled.norm().item<double>()))
              << name << " " << rows << "x" << cols << " " << name_of(form) << " " << i;
        }
      }
    }
  }
}

TEST(NewtonSchulz, ABatchThatIsNotFullGivesTheSameBits) {
  at::manual_seed(10);
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 8; ++i) inputs.push_back(at::randn({40, 70}));
  const auto plan = plan_of(inputs[0], find_coefficient_set("jordan"), kGramRestarts,
                            NewtonSchulzDType::kBFloat16, cuda_target());
  const auto full = run(plan, inputs);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(run(plan, {inputs[i]})[0].equal(full[i])) << i;
}

TEST(NewtonSchulz, UnknownNamesListTheValidOnes) {
  const std::vector<std::pair<std::function<void()>, const char*>> calls = {
      {[] { find_coefficient_set("jordon"); }, "jordan"},
      {[] { parse_form("grams"); }, "auto, standard, gram or gram_restarts"},
      {[] { parse_newton_schulz_dtype("half"); }, "auto, float32, bfloat16 or float16"}};
  for (const auto& [call, listed] : calls) {
    try {
      call();
      FAIL() << "accepted";
    } catch (const ValueError& error) {
      EXPECT_NE(std::string(error.what()).find(listed), std::string::npos) << error.what();
    }
  }
}

TEST(NewtonSchulz, MalformedTriplesAndEmptyMatricesAreRefused) {
  EXPECT_THROW(custom_coefficient_set({}), ValueError);
  EXPECT_THROW(custom_coefficient_set({{1.0, std::nan(""), 0.0}}), ValueError);
  const NewtonSchulzRequest request{kAuto, NewtonSchulzDType::kAuto,
                                    find_coefficient_set("jordan")};
  EXPECT_THROW(plan_newton_schulz(0, 3, request, this_cpu()), ValueError);
  EXPECT_THROW(plan_newton_schulz(int64_t{1} << 40, 2, request, this_cpu()), ValueError);
}

TEST(NewtonSchulz, TheCountedOperationsAreThoseOfTheForms) {
  const CoefficientSet& set = find_coefficient_set("jordan");
  const double m = 64, alpha = 4;
  const auto flops = [&](NewtonSchulzForm form) {
    const NewtonSchulzRequest request{form, NewtonSchulzDType::kFloat32, set};
    return newton_schulz_flops(plan_newton_schulz(64, 256, request, this_cpu())) / (m * m * m);
  };
  EXPECT_DOUBLE_EQ(flops(kStandard), 15 * alpha + 5);
  EXPECT_DOUBLE_EQ(flops(kGram), 3 * alpha + 17);
  EXPECT_DOUBLE_EQ(flops(kGramRestarts), 9 * alpha + 11);
}

// What a plan is may depend on the shape, the options and the kind of machine only.
TEST(NewtonSchulz, TheTableChoosesFormAndDataTypeByShapeAndMachine) {
  const ProductTarget bf16{CpuIsa::kAvx512Bf16, true, false}, avx2{CpuIsa::kAvx2, true, false};
  const auto chosen = [](int64_t rows, int64_t cols, const ProductTarget& target,
                         const char* set = "jordan", NewtonSchulzForm form = kAuto) {
    const NewtonSchulzRequest request{form, NewtonSchulzDType::kAuto, find_coefficient_set(set)};
    const auto plan = plan_newton_schulz(rows, cols, request, target);
    return std::string(name_of(plan.form)) + " " + name_of(plan.dtype);
  };
  EXPECT_EQ(chosen(1024, 1024, avx2), "standard float32");
  EXPECT_EQ(chosen(1024, 4096, avx2), "gram float32");
  EXPECT_EQ(chosen(1024, 1024, bf16), "standard bfloat16");
  EXPECT_EQ(chosen(1024, 16384, bf16), "gram bfloat16");
  EXPECT_EQ(chosen(2048, 1024, bf16, "polar_express_6"), "standard bfloat16");
  EXPECT_EQ(chosen(16384, 1024, bf16, "polar_express_6"), "gram float32");
  EXPECT_EQ(chosen(1024, 1024, bf16, "cans"), "standard float32");
  EXPECT_EQ(chosen(32, 32, bf16), "standard float32");  // tiny
  // Who names bfloat16 gets it, for any set.
  for (const CoefficientSet& set : coefficient_sets()) {
    for (const auto form : {kAuto, kStandard, kGram, kGramRestarts}) {
      for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {8, 12}, {64, 512}}) {
        const auto plan =
            plan_newton_schulz(rows, cols, {form, NewtonSchulzDType::kBFloat16, set}, bf16);
        EXPECT_EQ(plan.dtype, DType::kBFloat16) << set.name;
        EXPECT_EQ(plan.rows, rows);
      }
    }
  }
  // A form that is named takes no data type that is not safe in it.
  EXPECT_EQ(chosen(1024, 4096, bf16, "polar_express_6", kGramRestarts), "gram_restarts float32");
  EXPECT_EQ(chosen(1024, 4096, bf16, "jordan", kGramRestarts), "gram_restarts bfloat16");
  EXPECT_EQ(chosen(1024, 2048, cuda_target()), "gram_restarts float16");
  // AMX has no rows of its own yet: those of the nearest machine below are taken.
  EXPECT_EQ(chosen(1024, 1024, {CpuIsa::kAmxBf16, true, false}), "standard bfloat16");
  // A family on which bf16 was not measured stays in fp32, but for who names it.
  for (const auto family : {CpuFamily::kIntel, CpuFamily::kOther}) {
    ProductTarget same_isa = bf16;
    same_isa.family = family;
    EXPECT_EQ(chosen(1024, 1024, same_isa), "standard float32");
    const auto named = plan_newton_schulz(
        1024, 1024, {kAuto, NewtonSchulzDType::kBFloat16, find_coefficient_set("jordan")},
        same_isa);
    EXPECT_EQ(named.dtype, DType::kBFloat16);
  }
}

TEST(NewtonSchulz, BFloat16WithoutTheHardwareIsRefusedAndSaysWhatAutoWouldTake) {
  const NewtonSchulzRequest request{kAuto, NewtonSchulzDType::kBFloat16,
                                    find_coefficient_set("jordan")};
  try {
    plan_newton_schulz(8, 8, request, {CpuIsa::kAvx2, true, false});
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("avx2"), std::string::npos) << text;
    EXPECT_NE(text.find("would use float32"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace zeromuon::ops
