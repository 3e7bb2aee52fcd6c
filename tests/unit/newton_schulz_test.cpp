#include "csrc/ops/newton_schulz/newton_schulz.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

at::Tensor run(const at::Tensor& input, const CoefficientSet& set, NewtonSchulzForm form,
               Products& products) {
  const NewtonSchulz op(plan_newton_schulz(input.size(0), input.size(1), form, set), products);
  at::Tensor out = input.clone();
  // Poisoned, so that a read of scratch before its first write shows.
  at::Tensor scratch = at::full({op.plan().scratch_numel}, std::nan(""));
  op.run(out.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>());
  return out;
}

at::Tensor run(const at::Tensor& input, NewtonSchulzForm form = NewtonSchulzForm::kAuto) {
  return run(input, find_coefficient_set("jordan"), form, host_products());
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

// The definition, in fp64.
at::Tensor reference(const at::Tensor& input, const CoefficientSet& set) {
  const bool tall = input.size(0) > input.size(1);
  at::Tensor x = (tall ? input.t() : input).to(at::kDouble);
  if (set.scale_rows) {
    x = x / x.matmul(x.t()).abs().sum(1).sqrt().unsqueeze(1);
  } else {
    x = x / (set.safety * x.norm());
  }
  for (const Triple& t : set.triples) {
    const at::Tensor a = x.matmul(x.t());
    x = t.a * x + (t.b * a + t.c * a.matmul(a)).matmul(x);
  }
  return (tall ? x.t() : x).to(at::kFloat);
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {
    {1, 1}, {1, 7}, {7, 1}, {2, 3}, {33, 64}, {130, 130}, {384, 96}, {96, 700}, {513, 300}};

// A matrix of rank one has its singular value at 1, where cans amplifies rounding 6e4 times. Gram
// on matrices that are nearly square, where "auto" does not take it, amplifies the rounding of R.
double bar(const CoefficientSet& set, int64_t rows, int64_t cols, NewtonSchulzForm form) {
  if (set.name == "cans") return 1e-2;
  const bool wide = 2 * std::max(rows, cols) >= 3 * std::min(rows, cols);
  return form == NewtonSchulzForm::kGram && !wide ? 5e-3 : 1e-3;
}

TEST(NewtonSchulz, EverySetAndFormMatchesTheDefinitionInDouble) {
  at::manual_seed(1);
  for (const CoefficientSet& set : coefficient_sets()) {
    for (const auto& [rows, cols] : kShapes) {
      const at::Tensor u = at::randn({rows, cols});
      for (const auto form : {NewtonSchulzForm::kStandard, NewtonSchulzForm::kGram}) {
        EXPECT_LE(relative(run(u, set, form, host_products()), reference(u, set)),
                  bar(set, rows, cols, form))
            << set.name << " " << rows << "x" << cols << " " << name_of(form);
      }
    }
  }
}

TEST(NewtonSchulz, GramAgreesWithStandardOnAFlatAndOnASteepSpectrum) {
  at::manual_seed(2);
  const at::Tensor gaussian = at::randn({128, 512});
  const at::Tensor left = std::get<0>(at::linalg_qr(at::randn({128, 128})));
  const at::Tensor right = std::get<0>(at::linalg_qr(at::randn({512, 128})));
  const at::Tensor steep = (left * at::logspace(0, -3, 128)).matmul(right.t()).contiguous();
  for (const at::Tensor& u : {gaussian, steep}) {
    EXPECT_LE(relative(run(u, NewtonSchulzForm::kGram), run(u, NewtonSchulzForm::kStandard)), 5e-4);
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

// Note [Same bits everywhere]: alone or after other matrices, with one thread or two.
TEST(NewtonSchulz, GivesTheSameBitsForAnyNumberOfThreads) {
  at::manual_seed(5);
  for (const auto& [rows, cols] : kShapes) {
    const at::Tensor u = at::randn({rows, cols});
    for (const auto form : {NewtonSchulzForm::kStandard, NewtonSchulzForm::kGram}) {
      omp_set_num_threads(1);
      const at::Tensor one = run(u, form);
      omp_set_num_threads(2);
      const at::Tensor two = run(u, form);
      omp_set_num_threads(3);
      EXPECT_TRUE(one.equal(two)) << rows << "x" << cols << " " << name_of(form);
      EXPECT_TRUE(one.equal(run(u, form))) << rows << "x" << cols << " " << name_of(form);
    }
  }
  omp_set_num_threads(2);
}

TEST(NewtonSchulz, TheLibtorchProductsAgreeWithTheTiledOnes) {
  at::manual_seed(6);
  TensorProducts tensors{at::Device(at::kCPU)};
  for (const char* name : {"jordan", "cubic", "aol_4"}) {
    const CoefficientSet& set = find_coefficient_set(name);
    for (const auto& [rows, cols] : kShapes) {
      const at::Tensor u = at::randn({rows, cols});
      for (const auto form : {NewtonSchulzForm::kStandard, NewtonSchulzForm::kGram}) {
        EXPECT_LE(relative(run(u, set, form, tensors), run(u, set, form, host_products())), 1e-3)
            << name << " " << rows << "x" << cols << " " << name_of(form);
      }
    }
  }
}

TEST(NewtonSchulz, SymmetricProductsAreExactlySymmetric) {
  at::manual_seed(7);
  const at::Tensor u = at::randn({300, 400});
  at::Tensor out = at::full({300, 300}, std::nan(""));
  const Matrix x{const_cast<float*>(u.const_data_ptr<float>()), 300, 400};
  host_products().symmetric(as_is(x), transpose(x), 400, 1.0f, 0.0f,
                            {out.mutable_data_ptr<float>(), 300, 300});
  EXPECT_TRUE(out.equal(out.t()));
  EXPECT_LE(relative(out, u.matmul(u.t())), 1e-5);
}

TEST(NewtonSchulz, UnknownNamesListTheValidOnes) {
  for (const auto& body : std::vector<std::function<void()>>{[] { find_coefficient_set("jordon"); },
                                                             [] { parse_form("grams"); }}) {
    try {
      body();
      FAIL() << "accepted";
    } catch (const ValueError& error) {
      const std::string text = error.what();
      EXPECT_TRUE(text.find("jordan") != std::string::npos ||
                  text.find("gram") != std::string::npos);
    }
  }
}

TEST(NewtonSchulz, MalformedTriplesAndEmptyMatricesAreRefused) {
  EXPECT_THROW(custom_coefficient_set({}), ValueError);
  EXPECT_THROW(custom_coefficient_set({{1.0, std::nan(""), 0.0}}), ValueError);
  EXPECT_THROW(plan_newton_schulz(0, 3, NewtonSchulzForm::kAuto, find_coefficient_set("jordan")),
               ValueError);
}

TEST(NewtonSchulz, TheCountedOperationsAreThoseOfTheForms) {
  const CoefficientSet& set = find_coefficient_set("jordan");
  const double m = 64, alpha = 4;
  const auto flops = [&](NewtonSchulzForm form) {
    return newton_schulz_flops(plan_newton_schulz(64, 256, form, set)) / (m * m * m);
  };
  EXPECT_DOUBLE_EQ(flops(NewtonSchulzForm::kStandard), 15 * alpha + 5);
  EXPECT_DOUBLE_EQ(flops(NewtonSchulzForm::kGram), 3 * alpha + 17);
}

}  // namespace
}  // namespace zeromuon::ops
