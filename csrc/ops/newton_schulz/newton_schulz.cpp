#include "csrc/ops/newton_schulz/newton_schulz.h"

#include <algorithm>
#include <utility>

#include "csrc/base/parallel.h"
#include "csrc/ops/newton_schulz/float16_newton_schulz.h"

namespace zeromuon::ops {
// out = a b, of commuting polynomials of one symmetric matrix.
void NewtonSchulz::square_product(Matrix a, Matrix b, Matrix out, bool rounds) const {
  const bool rounded = plan_.rounds_squares();
  Product product{plan_.square, Operand{a, false, rounded},
                  Operand{b, plan_.square.transposed, rounded}};
  product.out = out;
  product.symmetric = true;
  product.rounds = rounds;
  products_.multiply(product);
}

// out = diagonal I + b R + c R R.
void NewtonSchulz::polynomial(const Triple& t, float diagonal, Matrix r, Matrix out,
                              bool rounds) const {
  const auto b = static_cast<float>(t.b), c = static_cast<float>(t.c);
  if (t.c == 0) return products_.linear(r, b, diagonal, rounds, out);
  const bool rounded = plan_.rounds_squares();
  Product product{plan_.square, Operand{r, false, rounded},
                  Operand{r, plan_.square.transposed, rounded}};
  product.alpha = c;
  product.beta = b;
  product.addend = r.data;
  product.addend_stride = r.stride;
  product.diagonal = diagonal;
  product.out = out;
  product.symmetric = true;
  product.rounds = rounds;
  products_.multiply(product);
}

// out = q x + a x.
void NewtonSchulz::apply(Matrix q, Matrix x, double a, Matrix out, bool rounds) const {
  const bool rounded = plan_.dtype != DType::kFloat32;
  Product product{plan_.apply, Operand{q, false, rounded}, Operand{x, false, rounded}};
  product.beta = static_cast<float>(a);
  product.addend = x.data;
  product.addend_stride = x.stride;
  product.out = out;
  product.rounds = rounds;
  products_.multiply(product);
}

// P_k = a I + b R_k + c R_k^2;  Q_k+1 = P_k Q_k;  R_k+1 = P_k R_k P_k. All of them commute.
// squares: R, and scratch for P, Q and one more. Returns Q.
Matrix NewtonSchulz::accumulate(std::span<const Triple> triples,
                                const std::array<Matrix, 4>& squares) const {
  auto [r, p, q, spare] = squares;
  const bool rounds = plan_.rounds_squares(), applied_rounded = plan_.dtype != DType::kFloat32;
  for (size_t k = 0; k < triples.size(); ++k) {
    const bool last = k + 1 == triples.size();
    const Matrix& factor = k == 0 ? q : p;
    polynomial(triples[k], static_cast<float>(triples[k].a), r, factor, rounds);
    if (k > 0) {
      square_product(p, q, spare, rounds || (last && applied_rounded));
      std::swap(q, spare);
    }
    if (last) break;
    square_product(k == 0 ? q : p, r, spare, rounds);
    square_product(spare, k == 0 ? q : p, r, rounds);
  }
  return q;
}

void NewtonSchulz::segment(std::span<const Triple> triples, const NewtonSchulzScratch& scratch,
                           const Segment& at) const {
  const Matrix& x = at.x;
  const bool rounds = plan_.dtype != DType::kFloat32;
  std::array<Matrix, 4> squares;
  for (int i = 0; i < 4; ++i) {
    squares[i] = {scratch.squares[i],
                  scratch.squares_rounded[i],
                  x.rows,
                  x.rows,
                  row_stride(x.rows, plan_),
                  x.batch,
                  plan_.dtype,
                  i == 0 ? plan_.units.r : plan_.units.q};
  }
  Product gram{plan_.gram, Operand{x, false, rounds}, Operand{x, true, rounds}};
  gram.out = squares[0];
  gram.symmetric = true;
  gram.rounds = plan_.rounds_squares();
  products_.multiply(gram);
  if (at.first && plan_.coefficients.scale_rows) {
    products_.scale_rows_aol(squares[0], x, rounds, scratch.row_scales);
  }
  if (triples.size() == 1) {
    polynomial(triples[0], 0, squares[0], squares[1], rounds);
    return apply(squares[1], x, triples[0].a, at.out, rounds && !at.last);
  }
  apply(accumulate(triples, squares), x, 0, at.out, rounds && !at.last);
}

void NewtonSchulz::run_batch(std::span<float* const> matrices, float* memory) const {
  if (plan_.float16_alone()) return run_float16(plan_, matrices, memory, products_.float16());
  const NewtonSchulzScratch scratch = lay_out_scratch(plan_, memory);
  const int64_t m = plan_.short_side(), n = plan_.long_side();
  const Caller caller{matrices, plan_.rows, plan_.cols};
  const bool rounds = plan_.dtype != DType::kFloat32;
  const int64_t stride = row_stride(n, plan_);
  const DType as = plan_.dtype;
  const int unit = plan_.units.x;
  Matrix x{scratch.x, scratch.x_rounded, m, n, stride, plan_.batch, as, unit};
  Matrix other{scratch.other, scratch.other_rounded, m, n, stride, plan_.batch, as, unit};
  const Matrix own{matrices[0], scratch.other_rounded, m, n, n, 1, as, unit};
  // On the host the last segment writes into a wide matrix of the caller.
  const bool lands = !plan_.tall() && plan_.apply.backend != ProductBackend::kTensors;
  if (other.data == nullptr) {
    other = own;
    if (lands && plan_.segments.size() % 2 == 0) std::swap(x, other);
  }
  products_.normalize(caller, plan_.coefficients.safety, rounds, x, scratch.partial_sums);
  std::span<const Triple> triples = plan_.coefficients.triples;
  for (size_t s = 0; s < plan_.segments.size(); ++s) {
    const auto length = static_cast<size_t>(plan_.segments[s]);
    const bool last = s + 1 == plan_.segments.size();
    if (last && lands) other = own;
    segment(triples.first(length), scratch, {x, other, s == 0, last});
    triples = triples.subspan(length);
    std::swap(x, other);
  }
  products_.store(x, caller, scratch.x);
}

void NewtonSchulz::run(std::span<float* const> matrices, float* scratch, int lanes) const {
  if (matrices.empty()) return;
  size_t done = 0;
  if (plan_.takes_lanes() && lanes > 1) {
    done = matrices.size() / lanes * lanes;
    parallel_for(static_cast<int64_t>(done), lanes, [&](int64_t i, int lane) {
      run_batch(matrices.subspan(i, 1), scratch + lane * plan_.scratch_numel);
    });
  }
  while (done < matrices.size()) {
    const size_t count = std::min(matrices.size() - done, static_cast<size_t>(plan_.batch));
    run_batch(matrices.subspan(done, count), scratch);
    done += count;
  }
}

}  // namespace zeromuon::ops
