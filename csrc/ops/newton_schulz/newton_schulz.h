// Newton-Schulz: replaces a matrix U = P S V^T by an approximation of P V^T.
//
//   X = U / (safety*||U||_F);  per triple (a, b, c):  A = X X^T,  X <- a X + (b A + c A A) X
//
// standard works on X itself. gram iterates on R = X X^T (m x m), accumulates the polynomial Q and
// finishes with Q X: fewer operations once the long side is 1.5 times the short one.
// Source: K. Jordan et al., Muon (2024); the Gram form, arXiv 2505.16932 appendix.
#pragma once

#include "csrc/ops/newton_schulz/plan.h"
#include "csrc/ops/newton_schulz/products.h"

namespace zeromuon::ops {

class NewtonSchulz {
 public:
  NewtonSchulz(NewtonSchulzPlan plan, Products& products)
      : plan_(std::move(plan)), products_(products) {}

  const NewtonSchulzPlan& plan() const { return plan_; }

  // In place. Scale-free: the norm is taken in double. A zero matrix stays zero.
  // matrix: [rows, cols] fp32. scratch: [plan().scratch_numel] fp32, contents are overwritten.
  // Both on the memory that `products` works on, 64-byte aligned.
  void run(float* matrix, float* scratch) const;

 private:
  struct Scratch;
  void run_standard(Matrix x, Matrix other, const Scratch& scratch) const;
  void run_gram(Matrix x, Matrix out, const Scratch& scratch) const;
  void gram_product(Matrix x, Matrix out) const;
  void polynomial(const Triple& t, Matrix r, Matrix out) const;

  NewtonSchulzPlan plan_;
  Products& products_;
};

}  // namespace zeromuon::ops
