#include "csrc/ops/newton_schulz/float16_newton_schulz.h"

#include <array>
#include <cmath>
#include <utility>

#include "csrc/ops/newton_schulz/scratch.h"

namespace zeromuon::ops {
namespace {

// A matrix and the unit of its values.
struct Stored {
  HalfMatrix matrix;
  int unit = 0;

  float in_units(double value) const { return static_cast<float>(std::ldexp(value, unit)); }
};

class Run {
 public:
  Run(const NewtonSchulzPlan& plan, const Places& places, float* memory, Float16Ops& ops)
      : plan_(plan), places_(places), scratch_(lay_out_float16_scratch(plan, memory)), ops_(ops) {}

  void operator()() {
    Stored x = large(scratch_.x), other = large(scratch_.other);
    ops_.use_workspace(scratch_.workspace, kWorkspaceBytes);
    ops_.sum_squares(places_, scratch_.norm_parts);
    ops_.normalize(places_, scratch_.norm_parts, x.in_units(1 / plan_.coefficients.safety),
                   x.matrix);
    std::span<const Triple> triples = plan_.coefficients.triples;
    for (const int length : plan_.segments) {
      const Stored q = polynomial_of(x, triples.first(length));
      triples = triples.subspan(length);
      const auto [a, b] = factors(q, x);
      const double units = std::ldexp(1.0, -q.unit - x.unit);
      if (triples.empty()) {
        ops_.multiply_to(a, b, static_cast<float>(units), places_);
      } else {
        ops_.multiply({a, b, other.in_units(units), 0, other.matrix});
        std::swap(x, other);
      }
    }
  }

 private:
  Stored large(Float16* data) const {
    return {{data, plan_.rows, plan_.cols, tensor_row_stride(plan_.cols), plan_.batch},
            plan_.units.x};
  }

  Stored square(int index, int unit) const {
    const int64_t m = plan_.short_side();
    return {{scratch_.squares[index], m, m, tensor_row_stride(m), plan_.batch}, unit};
  }

  // Of the product that applies q: q x of a wide matrix, x q of a tall one.
  std::pair<HalfFactor, HalfFactor> factors(const Stored& q, const Stored& x) const {
    if (plan_.tall()) return {{x.matrix}, {q.matrix}};
    return {{q.matrix}, {x.matrix}};
  }

  // Q for the iterations of a segment: P_k = a I + b R_k + c R_k^2;  Q_k+1 = P_k Q_k;  R_k+1 = P_k
  // R_k P_k. All of them are polynomials of one symmetric matrix, and commute.
  Stored polynomial_of(const Stored& x, std::span<const Triple> triples) {
    Stored r = square(0, plan_.units.r), q = square(1, plan_.units.q);
    Stored p = square(2, plan_.units.q), spare = square(3, plan_.units.q);
    ops_.multiply(symmetric({x.matrix, plan_.tall()}, {x.matrix, !plan_.tall()},
                            r.in_units(std::ldexp(1.0, -2 * x.unit)), r));
    complete_r(r, triples[0], q);
    for (size_t k = 0; k < triples.size(); ++k) {
      const Stored& factor = k == 0 ? q : p;
      polynomial(triples[k], r, factor);
      const Stored taken = factor;
      if (k > 0) {
        product(p, q, spare);
        std::swap(q, spare);
      }
      if (k + 1 == triples.size()) break;
      product(taken, r, spare);
      multiply(spare, taken, r);
      complete_r(r, triples[k + 1], p);
    }
    return q;
  }

  HalfProduct symmetric(const HalfFactor& a, const HalfFactor& b, float alpha,
                        const Stored& out) const {
    return {a, b, alpha, 0, out.matrix, plan_.square.blocks, scratch_.pointers};
  }

  // Of two polynomials. Where it is cut, its upper triangle is not there yet.
  void multiply(const Stored& a, const Stored& b, const Stored& out) {
    const double units = std::ldexp(1.0, -a.unit - b.unit);
    ops_.multiply(symmetric({a.matrix}, {b.matrix}, out.in_units(units), out));
  }

  void product(const Stored& a, const Stored& b, const Stored& out) {
    multiply(a, b, out);
    if (plan_.square.blocks.count > 1) ops_.complete(out.matrix, 0, {});
  }

  // next: the polynomial that R will be an addend of.
  void complete_r(const Stored& r, const Triple& t, const Stored& next) {
    ops_.complete(r.matrix, 0, t.c == 0 ? HalfMatrix{} : next.matrix);
  }

  // out = a I + b R + c R R; its lower triangle holds R's, as complete_r() left it.
  void polynomial(const Triple& t, const Stored& r, const Stored& out) {
    const auto b = out.in_units(std::ldexp(t.b, -r.unit));
    if (t.c == 0) return ops_.linear(r.matrix, b, out.in_units(t.a), out.matrix);
    HalfProduct squared =
        symmetric({r.matrix}, {r.matrix}, out.in_units(std::ldexp(t.c, -2 * r.unit)), out);
    squared.beta = b;
    ops_.multiply(squared);
    ops_.complete(out.matrix, out.in_units(t.a), {});
  }

  const NewtonSchulzPlan& plan_;
  const Places places_;
  const Float16Scratch scratch_;
  Float16Ops& ops_;
};

}  // namespace

void run_float16(const NewtonSchulzPlan& plan, std::span<float* const> matrices, float* memory,
                 Float16Ops& ops) {
  Run(plan, {matrices, plan.rows, plan.cols}, memory, ops)();
}

}  // namespace zeromuon::ops
