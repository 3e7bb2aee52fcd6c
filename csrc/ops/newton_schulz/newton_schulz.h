// Newton-Schulz: replaces a matrix U = P S V^T by an approximation of P V^T.
//
//   X = U / (safety*||U||_F);  per triple (a, b, c):  A = X X^T,  X <- a X + (b A + c A A) X
//
// See Note [Forms] in plan.h for the ways of computing it.
// Source: K. Jordan et al., Muon (2024); the Gram form, arXiv 2505.16932 appendix.
#pragma once

#include <array>
#include <span>

#include "csrc/ops/newton_schulz/plan.h"
#include "csrc/ops/newton_schulz/products.h"
#include "csrc/ops/newton_schulz/scratch.h"

namespace zeromuon::ops {

class NewtonSchulz {
 public:
  NewtonSchulz(NewtonSchulzPlan plan, Products& products)
      : plan_(std::move(plan)), products_(products) {}

  const NewtonSchulzPlan& plan() const { return plan_; }

  // In place. Scale-free: the norm is taken on the whole matrix. A zero matrix stays zero; a NaN or
  // an infinity in a matrix makes its result not finite.
  //
  // matrices: [rows, cols] fp32 each. scratch: [lanes * plan().scratch_numel] fp32, contents are
  // overwritten, 64-byte aligned. Both on the memory that `products` works on.
  // lanes: how many small matrices may be worked on at once, one thread each. The bits of a result
  // depend neither on it nor on the other matrices.
  void run(std::span<float* const> matrices, float* scratch, int lanes) const;

 private:
  // One segment of Note [Forms]: reads x, writes out.
  struct Segment {
    Matrix x, out;
    bool first, last;
  };

  void run_batch(std::span<float* const> matrices, float* memory) const;
  void segment(std::span<const Triple> triples, const NewtonSchulzScratch& scratch,
               const Segment& at) const;
  Matrix accumulate(std::span<const Triple> triples, const std::array<Matrix, 4>& squares) const;
  void polynomial(const Triple& t, float diagonal, Matrix r, Matrix out, bool rounds) const;
  void square_product(Matrix a, Matrix b, Matrix out, bool rounds) const;
  void apply(Matrix q, Matrix x, double a, Matrix out, bool rounds) const;

  NewtonSchulzPlan plan_;
  Products& products_;
};

}  // namespace zeromuon::ops
