// The operations of a Newton-Schulz that keeps its matrices in float16 alone, whole passes over
// memory that libtorch or CUDA owns: products, and what is done between them.
//
// See Note [float16 alone]. Values are as they are stored: units are the caller's matter.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "csrc/base/dtype.h"
#include "csrc/ops/newton_schulz/triangle_blocks.h"

namespace zeromuon::ops {

// Matrices of a batch, each [rows, cols], row-major, rows `stride` elements apart, one behind the
// other.
struct HalfMatrix {
  Float16* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;
  int64_t batch = 1;

  ZM_HOST_DEVICE int64_t numel() const { return rows * stride; }  // to the next
};

struct HalfFactor {
  HalfMatrix matrix;
  bool transposed = false;
};

// out = alpha * a b + beta * out, with fp32 sums, rounded once. out is not read where beta is 0.
struct HalfProduct {
  HalfFactor a, b;
  float alpha = 1, beta = 0;
  HalfMatrix out = {};
  TriangleBlocks blocks =
      {};  // more than one: `a b` is symmetric, and its upper blocks are not written
  void** pointers = nullptr;  // [3, batch, blocks]; where there is more than one
};

// fp32 matrices of one shape, contiguous, wherever they lie.
struct Places {
  std::span<float* const> matrices;
  int64_t rows, cols;

  int64_t numel() const { return rows * cols; }
};

// Sums of squares of a matrix, each of as many elements.
constexpr int64_t kNormParts = 256;

// What an element of the diagonal becomes.
ZM_HOST_DEVICE inline Float16 plus(Float16 value, float diagonal) {
  Float16 sum;
  encode(decode(value) + diagonal, sum);
  return sum;
}

ZM_HOST_DEVICE inline Float16 scaled(float value, double factor) {
  Float16 result;
  encode(static_cast<float>(value * factor), result);
  return result;
}

// factor * in + diagonal * [on the diagonal].
ZM_HOST_DEVICE inline Float16 linear(Float16 in, float factor, float diagonal) {
  Float16 result;
  encode(decode(in) * factor + diagonal, result);
  return result;
}

// What the norm of a matrix makes of its elements; 0: it is zero.
ZM_HOST_DEVICE inline double scale_of(double sum_of_squares, double scale) {
  return sum_of_squares == 0 ? 0.0 : scale / sqrt(sum_of_squares);
}

// Thread: one at a time.
class Float16Ops {
 public:
  virtual ~Float16Ops() = default;

  // Memory for the products' library, which the bits of a result may depend on; see
  // Float16Scratch::workspace.
  virtual void use_workspace(std::byte* memory, int64_t bytes) = 0;
  // parts: [matrices, kNormParts], in double.
  virtual void sum_squares(const Places& in, double* parts) = 0;
  // out = in * scale / ||in||_F, [rows, cols] as they are; what the batch has beyond them becomes
  // zero.
  virtual void normalize(const Places& in, const double* parts, double scale, HalfMatrix out) = 0;
  virtual void multiply(const HalfProduct& product) = 0;
  // out = alpha * a b, in fp32, of the first matrices of the batch.
  virtual void multiply_to(const HalfFactor& a, const HalfFactor& b, float alpha,
                           const Places& out) = 0;
  // Makes the square symmetric: its upper triangle becomes the lower one; `diagonal` is added to
  // its diagonal. copy: gets the lower triangle, with its diagonal as it was; data null: none.
  virtual void complete(HalfMatrix square, float diagonal, HalfMatrix copy) = 0;
  // out = factor * in + diagonal * I.
  virtual void linear(HalfMatrix in, float factor, float diagonal, HalfMatrix out) = 0;
};

}  // namespace zeromuon::ops
