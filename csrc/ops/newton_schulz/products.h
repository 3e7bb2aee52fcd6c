// The few dense operations that Newton-Schulz is made of, on host memory and on any libtorch
// device.
//
// All matrices are row-major and contiguous. `Operand` is a matrix read as it stands or transposed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace zeromuon::ops {

struct Matrix {
  float* data;  // [rows, cols] fp32
  int64_t rows, cols;
};

struct Operand {
  const float* data;
  int64_t stride;  // elements from one stored row to the next
  bool transposed;
};

inline Operand as_is(const Matrix& m) { return {m.data, m.cols, false}; }
inline Operand transpose(const Matrix& m) { return {m.data, m.cols, true}; }

// Elements whose squares one partial sum of the Frobenius norm adds up.
constexpr int64_t kNormChunk = 4096;

// Thread: used by one thread at a time; host products open an OpenMP team of their own.
class Products {
 public:
  virtual ~Products() = default;

  // out = alpha*a*b + beta*out; inner is the summed dimension.
  virtual void general(Operand a, Operand b, int64_t inner, float alpha, float beta,
                       Matrix out) = 0;
  // The same for a product that is symmetric by construction; `out` is exactly symmetric after it.
  virtual void symmetric(Operand a, Operand b, int64_t inner, float alpha, float beta,
                         Matrix out) = 0;
  // out = factor * in, computed in double and rounded. in and out may be the same matrix.
  virtual void scale(Matrix in, double factor, Matrix out) = 0;
  virtual void copy(Matrix in, Matrix out) = 0;
  virtual void add_to_diagonal(Matrix square, float value) = 0;
  // Sum of squares in double. `partial_sums` is scratch for one double per kNormChunk elements.
  virtual double squared_norm(Matrix in, double* partial_sums) = 0;
  // d_i = 1/sqrt(sum_j |square_ij|); square_ij *= d_i*d_j; x's short side is scaled by d. [m]
  virtual void scale_rows_aol(Matrix square, Matrix x, bool x_is_tall, float* d) = 0;
};

// BLAS on fixed tiles of the result, one thread per tile.
Products& host_products();

// libtorch operations on memory of `device`; the reference for host_products() when it is the CPU.
class TensorProducts final : public Products {
 public:
  explicit TensorProducts(at::Device device) : device_(device) {}
  void general(Operand a, Operand b, int64_t inner, float alpha, float beta, Matrix out) override;
  void symmetric(Operand a, Operand b, int64_t inner, float alpha, float beta, Matrix out) override;
  void scale(Matrix in, double factor, Matrix out) override;
  void copy(Matrix in, Matrix out) override;
  void add_to_diagonal(Matrix square, float value) override;
  double squared_norm(Matrix in, double* partial_sums) override;
  void scale_rows_aol(Matrix square, Matrix x, bool x_is_tall, float* d) override;

 private:
  at::Tensor view(const Matrix& matrix) const;
  at::Tensor view(const Operand& operand, int64_t rows, int64_t cols) const;
  at::Device device_;
};

}  // namespace zeromuon::ops
