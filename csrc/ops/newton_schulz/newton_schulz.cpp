#include "csrc/ops/newton_schulz/newton_schulz.h"

#include <cmath>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::ops {

struct NewtonSchulz::Scratch {
  Matrix x;           // [rows, cols]
  Matrix squares[4];  // [m, m]; the standard form uses two
  double* partial_sums;
  float* row_scales;  // [m]

  Scratch(const NewtonSchulzPlan& plan, float* memory) {
    const int64_t m = plan.short_side();
    const auto take = [&memory](int64_t numel) {
      return std::exchange(memory, memory + (numel + 15) / 16 * 16);
    };
    x = {take(plan.rows * plan.cols), plan.rows, plan.cols};
    const int count = plan.form == NewtonSchulzForm::kStandard ? 2 : 4;
    for (int i = 0; i < count; ++i) squares[i] = {take(m * m), m, m};
    const int64_t chunks = (plan.rows * plan.cols + kNormChunk - 1) / kNormChunk;
    partial_sums = reinterpret_cast<double*>(take(2 * chunks));
    row_scales = take(m);
  }
};

// out = X X^T of the short side.
void NewtonSchulz::gram_product(Matrix x, Matrix out) const {
  if (plan_.tall()) {
    products_.symmetric(transpose(x), as_is(x), x.rows, 1.0f, 0.0f, out);
  } else {
    products_.symmetric(as_is(x), transpose(x), x.cols, 1.0f, 0.0f, out);
  }
}

// out = b R + c R R (without the diagonal term a).
void NewtonSchulz::polynomial(const Triple& t, Matrix r, Matrix out) const {
  const auto b = static_cast<float>(t.b), c = static_cast<float>(t.c);
  if (t.c == 0) return products_.scale(r, b, out);
  products_.copy(r, out);
  products_.symmetric(as_is(r), as_is(r), r.rows, c, b, out);
}

// Each iteration reads x and writes other, then they change places.
void NewtonSchulz::run_standard(Matrix x, Matrix other, const Scratch& scratch) const {
  const auto& [gram, factor] = std::pair(scratch.squares[0], scratch.squares[1]);
  bool first = true;
  for (const Triple& t : plan_.coefficients.triples) {
    gram_product(x, gram);
    if (std::exchange(first, false) && plan_.coefficients.scale_rows) {
      products_.scale_rows_aol(gram, x, plan_.tall(), scratch.row_scales);
    }
    polynomial(t, gram, factor);
    products_.copy(x, other);
    const Operand left = as_is(plan_.tall() ? x : factor);
    const Operand right = as_is(plan_.tall() ? factor : x);
    products_.general(left, right, gram.rows, 1.0f, static_cast<float>(t.a), other);
    std::swap(x, other);
  }
}

// P_k = a I + b R_k + c R_k^2;  Q_k+1 = P_k Q_k;  R_k+1 = P_k R_k P_k. All of them commute.
void NewtonSchulz::run_gram(Matrix x, Matrix out, const Scratch& scratch) const {
  auto [r, p, q, spare] =
      std::tuple(scratch.squares[0], scratch.squares[1], scratch.squares[2], scratch.squares[3]);
  const int64_t m = r.rows;
  gram_product(x, r);
  if (plan_.coefficients.scale_rows) {
    products_.scale_rows_aol(r, x, plan_.tall(), scratch.row_scales);
  }
  const auto& triples = plan_.coefficients.triples;
  for (size_t k = 0; k < triples.size(); ++k) {
    polynomial(triples[k], r, p);
    products_.add_to_diagonal(p, static_cast<float>(triples[k].a));
    if (k == 0) {
      products_.copy(p, q);
    } else {
      products_.symmetric(as_is(p), as_is(q), m, 1.0f, 0.0f, spare);
      std::swap(q, spare);
    }
    if (k + 1 == triples.size()) break;
    products_.symmetric(as_is(p), as_is(r), m, 1.0f, 0.0f, spare);
    products_.symmetric(as_is(spare), as_is(p), m, 1.0f, 0.0f, r);
  }
  const Operand left = as_is(plan_.tall() ? x : q);
  const Operand right = as_is(plan_.tall() ? q : x);
  products_.general(left, right, m, 1.0f, 0.0f, out);
}

void NewtonSchulz::run(float* matrix, float* memory) const {
  const Scratch scratch(plan_, memory);
  const Matrix u{matrix, plan_.rows, plan_.cols};
  const double norm = std::sqrt(products_.squared_norm(u, scratch.partial_sums));
  if (norm == 0) return;
  const double factor = 1.0 / (plan_.coefficients.safety * norm);
  // The normalised input goes where the last product will not write.
  const bool standard = plan_.form == NewtonSchulzForm::kStandard;
  const bool in_place = standard && plan_.coefficients.triples.size() % 2 == 0;
  const Matrix x = in_place ? u : scratch.x;
  const Matrix other = in_place ? scratch.x : u;
  products_.scale(u, factor, x);
  standard ? run_standard(x, other, scratch) : run_gram(x, other, scratch);
}

}  // namespace zeromuon::ops
