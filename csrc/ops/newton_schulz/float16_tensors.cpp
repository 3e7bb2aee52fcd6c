// Float16Ops on libtorch's CPU tensors: what the GPU's are tested with and against.
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/matmul.h>

#include <algorithm>

#include "csrc/ops/newton_schulz/tensor_products.h"

namespace zeromuon::ops {
namespace {

at::Tensor view(const HalfMatrix& m) {  // [batch, rows, cols]
  return at::from_blob(m.data, {m.batch, m.rows, m.cols}, {m.numel(), m.stride, 1},
                       at::TensorOptions().dtype(at::kHalf));
}

// fp32 holds products of float16 numbers exactly.
at::Tensor values(const HalfFactor& factor) {
  const at::Tensor whole = view(factor.matrix).to(at::kFloat);
  return factor.transposed ? whole.transpose(1, 2) : whole;
}

class TensorFloat16Ops final : public Float16Ops {
 public:
  void use_workspace(std::byte*, int64_t) override {}

  void sum_squares(const Places& in, double* parts) override {
    const int64_t each = (in.numel() + kNormParts - 1) / kNormParts;
    for (const float* matrix : in.matrices) {
      for (int64_t part = 0; part < kNormParts; ++part) {
        double sum = 0;
        const int64_t end = std::min(in.numel(), (part + 1) * each);
        for (int64_t i = part * each; i < end; ++i) sum += double{matrix[i]} * matrix[i];
        *parts++ = sum;
      }
    }
  }

  void normalize(const Places& in, const double* parts, double scale, HalfMatrix out) override {
    for (int64_t k = 0; k < out.batch; ++k) {
      const bool there = k < static_cast<int64_t>(in.matrices.size());
      double sum = 0;
      for (int64_t part = 0; there && part < kNormParts; ++part)
        sum += parts[k * kNormParts + part];
      const double factor = scale_of(sum, scale);
      for (int64_t i = 0; i < in.rows; ++i) {
        Float16* const row = out.data + k * out.numel() + i * out.stride;
        for (int64_t j = 0; j < in.cols; ++j) {
          row[j] = there ? scaled(in.matrices[k][i * in.cols + j], factor) : Float16{0};
        }
      }
    }
  }

  void multiply(const HalfProduct& product) override {
    const at::Tensor a = values(product.a), b = values(product.b);
    const int count = product.blocks.count;
    const int64_t rows = product.out.rows / count, cols = product.out.cols / count;
    for (int64_t t = 0; t < product.blocks.numel(); ++t) {
      const BlockPlace at = block_at(static_cast<int>(t));
      const at::Tensor out =
          view(product.out).narrow(1, at.row * rows, rows).narrow(2, at.col * cols, cols);
      at::Tensor sum =
          at::matmul(a.narrow(1, at.row * rows, rows), b.narrow(2, at.col * cols, cols))
              .mul_(product.alpha);
      if (product.beta != 0) sum.add_(out.to(at::kFloat), product.beta);
      out.copy_(sum);
    }
  }

  void multiply_to(const HalfFactor& a, const HalfFactor& b, float alpha,
                   const Places& out) override {
    const at::Tensor sum = at::matmul(values(a), values(b)).mul_(alpha);
    for (size_t k = 0; k < out.matrices.size(); ++k) {
      at::from_blob(out.matrices[k], {out.rows, out.cols}, at::TensorOptions().dtype(at::kFloat))
          .copy_(sum[static_cast<int64_t>(k)]);
    }
  }

  void complete(HalfMatrix square, float diagonal, HalfMatrix copy) override {
    for (int64_t k = 0; k < square.batch; ++k) {
      Float16* const at = square.data + k * square.numel();
      for (int64_t i = 0; i < square.rows; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          Float16& value = at[i * square.stride + j];
          if (copy.data != nullptr) copy.data[k * copy.numel() + i * copy.stride + j] = value;
          if (i == j && diagonal != 0) value = plus(value, diagonal);
          at[j * square.stride + i] = value;
        }
      }
    }
  }

  void linear(HalfMatrix in, float factor, float diagonal, HalfMatrix out) override {
    for (int64_t k = 0; k < in.batch; ++k) {
      for (int64_t i = 0; i < in.rows; ++i) {
        for (int64_t j = 0; j < in.cols; ++j) {
          const Float16 value = in.data[k * in.numel() + i * in.stride + j];
          out.data[k * out.numel() + i * out.stride + j] =
              ops::linear(value, factor, i == j ? diagonal : 0.0f);
        }
      }
    }
  }
};

}  // namespace

std::unique_ptr<Float16Ops> make_tensor_float16_ops() {
  return std::make_unique<TensorFloat16Ops>();
}

}  // namespace zeromuon::ops
