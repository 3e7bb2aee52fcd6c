#include <ATen/Context.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <limits>

#include "csrc/ops/newton_schulz/products.h"

namespace zeromuon::ops {

at::Tensor TensorProducts::view(const Matrix& matrix) const {
  return at::from_blob(matrix.data, {matrix.rows, matrix.cols},
                       at::TensorOptions().dtype(at::kFloat).device(device_));
}

at::Tensor TensorProducts::view(const Operand& operand, int64_t rows, int64_t cols) const {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  auto* data = const_cast<float*>(operand.data);  // from_blob has no const form; never written
  return operand.transposed ? at::from_blob(data, {rows, cols}, {1, operand.stride}, options)
                            : at::from_blob(data, {rows, cols}, {operand.stride, 1}, options);
}

void TensorProducts::general(Operand a, Operand b, int64_t inner, float alpha, float beta,
                             Matrix out) {
  // The products are fp32 whatever torch.set_float32_matmul_precision says: TF32 loses the small
  // singular values (up to 0.11 relative on decaying spectra).
  const at::NoTF32Guard fp32_products;
  at::Tensor result = view(out);
  at::addmm_out(result, result, view(a, out.rows, inner), view(b, inner, out.cols), beta, alpha);
}

void TensorProducts::symmetric(Operand a, Operand b, int64_t inner, float alpha, float beta,
                               Matrix out) {
  general(a, b, inner, alpha, beta, out);
}

void TensorProducts::scale(Matrix in, double factor, Matrix out) {
  at::Tensor result = view(out);
  if (std::fabs(factor) <= std::numeric_limits<float>::max()) {
    at::mul_out(result, view(in), at::scalar_tensor(factor));
  } else {  // denormal matrices
    result.copy_(view(in).to(at::kDouble).mul_(factor));
  }
}

void TensorProducts::copy(Matrix in, Matrix out) { view(out).copy_(view(in)); }

void TensorProducts::add_to_diagonal(Matrix square, float value) {
  view(square).diagonal().add_(value);
}

double TensorProducts::squared_norm(Matrix in, double* /*partial_sums*/) {
  const double norm = at::linalg_vector_norm(view(in), 2, {}, false, at::kDouble).item<double>();
  return norm * norm;
}

void TensorProducts::scale_rows_aol(Matrix square, Matrix x, bool x_is_tall, float* /*d*/) {
  at::Tensor gram = view(square);
  at::Tensor d = at::rsqrt(gram.abs().sum(1));
  d.nan_to_num_(0.0, 0.0, 0.0);
  gram.mul_(d.unsqueeze(0)).mul_(d.unsqueeze(1));
  view(x).mul_(d.unsqueeze(x_is_tall ? 0 : 1));
}

}  // namespace zeromuon::ops
