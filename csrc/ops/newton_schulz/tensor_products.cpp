#include "csrc/ops/newton_schulz/tensor_products.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scalar_tensor.h>

#include <array>
#include <cmath>
#include <limits>

namespace zeromuon::ops {
namespace {

// Symmetric results are symmetric up to rounding only: libtorch has no product that halves them.
class TensorProducts final : public Products {
 public:
  TensorProducts(c10::Device device, std::unique_ptr<Float16Ops> float16)
      : device_(device), float16_(std::move(float16)) {}

  void multiply(const Product& product) override {
    // The products are fp32 whatever torch.set_float32_matmul_precision says: TF32 loses the small
    // singular values (up to 0.11 relative on decaying spectra).
    const at::NoTF32Guard fp32_products;
    at::Tensor out = view(product.out);
    const at::Tensor a = view(product.a), b = view(product.b);
    if (product.a.rounded) {
      multiply_rounded(out, product, a, b);
    } else if (product.beta != 0.0f) {
      at::baddbmm_out(out, addend(product), a, b, product.beta, product.alpha);
    } else {
      at::bmm_out(out, a, b);
      if (product.alpha != 1.0f) out.mul_(product.alpha);
    }
    finish(out, product.diagonal, product.rounds, product.out);
  }

  void normalize(const Caller& in, double safety, bool rounds, Matrix out,
                 double* /*partial_sums*/) override {
    at::Tensor x = view(out);
    for (size_t i = 0; i < in.matrices.size(); ++i) x[i].copy_(caller_view(in, i));
    if (static_cast<int64_t>(in.matrices.size()) < out.batch) {
      x.narrow(0, in.matrices.size(), out.batch - in.matrices.size()).zero_();
    }
    // Divided by its largest element first, a matrix of any scale has a norm that is an fp32
    // number.
    // Both norms are reductions that make no copy of it.
    x.div_(
        or_one(at::linalg_vector_norm(x, std::numeric_limits<double>::infinity(), {1, 2}, true)));
    x.div_(or_one(at::linalg_vector_norm(x, 2, {1, 2}, true)).mul_(safety));
    finish(x, 0, rounds, out);
  }

  void store(const Matrix& wide, const Caller& out, float* /*spare*/) override {
    const at::Tensor x = view(wide);
    for (size_t i = 0; i < out.matrices.size(); ++i) caller_view(out, i).copy_(x[i]);
  }

  void linear(const Matrix& in, float factor, float diagonal, bool rounds, Matrix out) override {
    at::Tensor result = view(out);
    result.copy_(view(in)).mul_(factor);
    finish(result, diagonal, rounds, out);
  }

  void scale_rows_aol(Matrix square, Matrix x, bool rounds, float* /*d*/) override {
    at::Tensor gram = view(square), matrix = view(x);
    at::Tensor d = at::rsqrt(gram.abs().sum(2));
    d.masked_fill_(d.isinf(), 0.0);
    gram.mul_(d.unsqueeze(1)).mul_(d.unsqueeze(2));
    matrix.mul_(d.unsqueeze(2));
    finish(matrix, 0, rounds, x);
    finish(gram, 0, rounds && square.rounded != nullptr, square);
  }

  Float16Ops& float16() override { return *float16_; }

 private:
  at::TensorOptions options(at::ScalarType type) const {
    return at::TensorOptions().dtype(type).device(device_);
  }

  static std::array<int64_t, 3> strides(const Matrix& matrix) {
    return {matrix.rows * matrix.stride, matrix.stride, 1};
  }

  at::Tensor view(const Matrix& matrix) const {  // [B, rows, cols] fp32
    return at::from_blob(matrix.data, {matrix.batch, matrix.rows, matrix.cols}, strides(matrix),
                         options(at::kFloat));
  }

  at::Tensor view_rounded(const Matrix& matrix) const {  // [B, rows, cols] bf16 or fp16
    const bool half = matrix.rounded_as == DType::kFloat16;
    return at::from_blob(matrix.rounded, {matrix.batch, matrix.rows, matrix.cols}, strides(matrix),
                         options(half ? at::kHalf : at::kBFloat16));
  }

  at::Tensor view(const Operand& operand) const {
    const at::Tensor matrix = operand.rounded ? view_rounded(operand.matrix) : view(operand.matrix);
    return operand.transposed ? matrix.transpose(1, 2) : matrix;
  }

  at::Tensor addend(const Product& product) const {
    const Matrix& out = product.out;
    auto* data = const_cast<float*>(product.addend);  // from_blob has no const form; never written
    const int64_t stride = product.addend_stride;
    return at::from_blob(data, {out.batch, out.rows, out.cols}, {out.rows * stride, stride, 1},
                         options(at::kFloat));
  }

  // One matrix of the caller, wide.
  at::Tensor caller_view(const Caller& caller, size_t index) const {
    const at::Tensor matrix =
        at::from_blob(caller.matrices[index], {caller.rows, caller.cols}, options(at::kFloat));
    return caller.tall() ? matrix.t() : matrix;
  }

  // 16-bit factors, fp32 sums and result. The addend may be the result itself: the factors are
  // copies.
  void multiply_rounded(at::Tensor& out, const Product& product, const at::Tensor& a,
                        const at::Tensor& b) const {
    const double alpha = std::ldexp(product.alpha, -product.a.matrix.unit - product.b.matrix.unit);
    const bool in_place = product.beta == 0.0f || product.addend == product.out.data;
    const at::Tensor c = in_place ? out : addend(product);
    if (device_.is_cuda()) {
      at::baddbmm_out(out, c, a, b, at::kFloat, product.beta, alpha);
    } else {  // libtorch has this product on GPUs only; fp32 holds products of 16-bit numbers
              // exactly
      at::baddbmm_out(out, c, a.to(at::kFloat), b.to(at::kFloat), product.beta, alpha);
    }
  }

  void finish(at::Tensor& result, float diagonal, bool rounds, const Matrix& out) const {
    if (diagonal != 0.0f) result.diagonal(0, 1, 2).add_(diagonal);
    if (!rounds) return;
    at::Tensor rounded = view_rounded(out);
    if (out.unit == 0) {
      rounded.copy_(result);
    } else {
      at::mul_out(rounded, result, at::scalar_tensor(std::ldexp(1.0, out.unit), at::kFloat));
    }
  }

  static at::Tensor or_one(at::Tensor divisor) { return divisor.masked_fill_(divisor.eq(0), 1.0); }

  c10::Device device_;
  std::unique_ptr<Float16Ops> float16_;
};

}  // namespace

std::unique_ptr<Products> make_tensor_products(c10::Device device,
                                               std::unique_ptr<Float16Ops> float16) {
  return std::make_unique<TensorProducts>(device, std::move(float16));
}

}  // namespace zeromuon::ops
