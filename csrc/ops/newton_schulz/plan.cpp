#include "csrc/ops/newton_schulz/plan.h"

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

// Floats are booked in cache lines so that every scratch matrix starts on one.
constexpr int64_t kLine = 16;
int64_t in_lines(int64_t numel) { return (numel + kLine - 1) / kLine * kLine; }

// Partial sums of the Frobenius norm, as doubles, one per kNormChunk elements (see products.h).
constexpr int64_t kNormChunk = 4096;

NewtonSchulzForm choose_form(int64_t short_side, int64_t long_side) {
  return 2 * long_side >= 3 * short_side ? NewtonSchulzForm::kGram : NewtonSchulzForm::kStandard;
}

}  // namespace

NewtonSchulzForm parse_form(const std::string& name) {
  if (name == "auto") return NewtonSchulzForm::kAuto;
  if (name == "standard") return NewtonSchulzForm::kStandard;
  if (name == "gram") return NewtonSchulzForm::kGram;
  throw_value_error("ns_form: expected auto, standard or gram, got \"" + name + "\"");
}

const char* name_of(NewtonSchulzForm form) {
  switch (form) {
    case NewtonSchulzForm::kAuto:
      return "auto";
    case NewtonSchulzForm::kStandard:
      return "standard";
    case NewtonSchulzForm::kGram:
      return "gram";
  }
  return "?";
}

NewtonSchulzPlan plan_newton_schulz(int64_t rows, int64_t cols, NewtonSchulzForm form,
                                    const CoefficientSet& coefficients) {
  require(rows > 0 && cols > 0, "Newton-Schulz needs a matrix, got shape (", rows, ", ", cols, ")");
  NewtonSchulzPlan plan{rows, cols, form, coefficients, 0};
  if (form == NewtonSchulzForm::kAuto) {
    plan.form = choose_form(plan.short_side(), plan.long_side());
  }
  const int64_t square = in_lines(plan.short_side() * plan.short_side());
  const int64_t squares = plan.form == NewtonSchulzForm::kStandard ? 2 : 4;
  const int64_t partial_sums = 2 * ((rows * cols + kNormChunk - 1) / kNormChunk);
  plan.scratch_numel = squares * square + in_lines(rows * cols) + in_lines(partial_sums) +
                       in_lines(plan.short_side());
  return plan;
}

double newton_schulz_flops(const NewtonSchulzPlan& plan) {
  const double m = static_cast<double>(plan.short_side());
  const double n = static_cast<double>(plan.long_side());
  const double rank_k = m * m * n;         // X X^T, one triangle
  const double square = m * m * m;         // product of two m x m polynomials, one triangle
  const double tall_product = 2 * rank_k;  // m x m times m x n
  double flops = 0;
  const auto& triples = plan.coefficients.triples;
  if (plan.form == NewtonSchulzForm::kStandard) {
    for (const Triple& t : triples) flops += rank_k + (t.c != 0 ? square : 0) + tall_product;
    return flops;
  }
  for (size_t k = 0; k < triples.size(); ++k) {
    const bool first = k == 0, last = k + 1 == triples.size();
    flops += (triples[k].c != 0 ? square : 0) + (first ? 0 : square) + (last ? 0 : 2 * square);
  }
  return flops + rank_k + tall_product;
}

}  // namespace zeromuon::ops
