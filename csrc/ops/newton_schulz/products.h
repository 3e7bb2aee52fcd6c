// The few dense operations that Newton-Schulz is made of.
//
// All matrices are row-major. B: matrices that go through together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/float16_ops.h"
#include "csrc/ops/newton_schulz/plan.h"
#include "csrc/ops/newton_schulz/scratch.h"

namespace zeromuon::ops {

struct Matrix {
  float* data = nullptr;        // [B, rows, cols] fp32
  BFloat16* rounded = nullptr;  // [B, rows, cols], the same values; null in fp32 plans
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // elements from one row to the next, of both; the next matrix follows
  int64_t batch = 1;
  DType rounded_as = DType::kBFloat16;  // or float16, of the same size, on tensors
  int unit = 0;                         // rounded holds the values times 2^unit, see Note [Units]
};

// A factor of a product.
struct Operand {
  Matrix matrix;
  bool transposed = false;
  bool rounded = false;  // the 16-bit values are multiplied, not the fp32 ones
};

// out = alpha * a b + beta * addend + diagonal * I; every operation is rounded on its own.
struct Product {
  const ProductPlan& plan;
  Operand a, b;
  float alpha = 1;
  float beta = 0;
  const float* addend = nullptr;  // [B, rows, cols]; read where beta is not 0
  int64_t addend_stride = 0;
  float diagonal = 0;
  Matrix out = {};
  bool symmetric = false;  // by construction; `out` is exactly symmetric then
  bool rounds = false;     // out.rounded is written, too
};

// Matrices as the caller holds them, [rows, cols] each, contiguous.
struct Caller {
  std::span<float* const> matrices;
  int64_t rows, cols;

  bool tall() const { return rows > cols; }
};

// Thread: host products may be called from several threads, with different scratch; each call opens
// an OpenMP team of its own unless it runs inside one.
class Products {
 public:
  virtual ~Products() = default;

  virtual void multiply(const Product& product) = 0;
  // out = U / (safety*||U||_F), wide, with the norm in double on the host; a zero U gives zero.
  // Batch places beyond `in` become zero. partial_sums: one double per kNormChunk elements.
  virtual void normalize(const Caller& in, double safety, bool rounds, Matrix out,
                         double* partial_sums) = 0;
  // Writes the first matrices of the batch back as the caller holds them. `wide` may be the memory
  // of the caller's only matrix; `spare`, of the same size, is scratch then.
  virtual void store(const Matrix& wide, const Caller& out, float* spare) = 0;
  // out = factor * in + diagonal * I.
  virtual void linear(const Matrix& in, float factor, float diagonal, bool rounds, Matrix out) = 0;
  // d_i = 1/sqrt(sum_j |square_ij|); square_ij *= d_i*d_j; row i of x is scaled by d_i. d: [B, m]
  virtual void scale_rows_aol(Matrix square, Matrix x, bool rounds, float* d) = 0;

  // For plans whose matrices are in float16 alone: of those that work on whole matrices.
  virtual Float16Ops& float16() { throw_internal_error("these products have no float16"); }
};

// Tiles of the plan, one thread each, by BLAS or oneDNN.
std::unique_ptr<Products> make_host_products();

}  // namespace zeromuon::ops
