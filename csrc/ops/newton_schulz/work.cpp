#include "csrc/ops/newton_schulz/work.h"

#include <vector>

#include "csrc/ops/newton_schulz/newton_schulz.h"

namespace zeromuon::ops {
namespace {

double flops_of(int64_t rows, int64_t inner, int64_t cols, int64_t batch) {
  return 2.0 * static_cast<double>(batch) * static_cast<double>(rows) * static_cast<double>(inner) *
         static_cast<double>(cols);
}

class CountingFloat16Ops final : public Float16Ops {
 public:
  explicit CountingFloat16Ops(DeviceWork& work) : work_(work) {}

  void use_workspace(std::byte*, int64_t) override {}
  void sum_squares(const Places& in, double*) override { pass(kFloat * numel(in)); }
  void normalize(const Places& in, const double*, double, HalfMatrix out) override {
    pass(kFloat * numel(in) + kHalf * out.batch * in.numel());
  }
  void multiply(const HalfProduct& product) override {
    const HalfMatrix& out = product.out;
    const bool cut = product.blocks.count > 1;
    work_.launches += cut ? 2 : 1;  // the addresses of the blocks are written first
    work_.flops += flops_of(out.rows, inner(product.a), out.cols, out.batch) *
                   (cut ? product.blocks.fraction() : 1.0);
  }
  void multiply_to(const HalfFactor& a, const HalfFactor&, float, const Places& out) override {
    const auto matrices = static_cast<int64_t>(out.matrices.size());
    work_.launches += matrices;
    work_.flops += flops_of(out.rows, inner(a), out.cols, matrices);
  }
  void complete(HalfMatrix square, float, HalfMatrix copy) override {
    const int64_t triangle = kHalf * square.batch * square.rows * square.cols / 2;
    pass((copy.data == nullptr ? 2 : 3) * triangle);
  }
  void linear(HalfMatrix in, float, float, HalfMatrix) override {
    pass(2 * kHalf * in.batch * in.rows * in.cols);
  }

 private:
  static constexpr int64_t kHalf = sizeof(Float16), kFloat = sizeof(float);

  static int64_t inner(const HalfFactor& a) { return a.transposed ? a.matrix.rows : a.matrix.cols; }
  static int64_t numel(const Places& places) {
    return static_cast<int64_t>(places.matrices.size()) * places.numel();
  }
  void pass(int64_t bytes) {
    ++work_.launches;
    work_.bytes += bytes;
  }

  DeviceWork& work_;
};

// The passes that libtorch makes of each, see tensor_products.cpp.
class CountingProducts final : public Products {
 public:
  void multiply(const Product& product) override {
    const Matrix& out = product.out;
    const bool copies = product.a.rounded && product.beta != 0 && product.addend != out.data;
    const bool scales = !product.a.rounded && product.beta == 0 && product.alpha != 1;
    const int64_t inner = product.a.transposed ? product.a.matrix.rows : product.a.matrix.cols;
    ++work.launches;
    work.flops += flops_of(out.rows, inner, out.cols, out.batch);
    if (copies || scales) pass(8 * numel(out));
    finish(product.diagonal, product.rounds, out);
  }
  void normalize(const Caller& in, double, bool rounds, Matrix out, double*) override {
    for (size_t i = 0; i < in.matrices.size(); ++i) pass(8 * in.rows * in.cols);
    for (int norm = 0; norm < 2; ++norm) {
      pass(4 * numel(out));  // the norm
      pass(8 * numel(out));  // what is divided by it
    }
    finish(0, rounds, out);
  }
  void store(const Matrix& wide, const Caller& out, float*) override {
    for (size_t i = 0; i < out.matrices.size(); ++i) pass(8 * wide.rows * wide.cols);
  }
  void linear(const Matrix& in, float, float diagonal, bool rounds, Matrix out) override {
    pass(8 * numel(in));
    pass(8 * numel(in));
    finish(diagonal, rounds, out);
  }
  void scale_rows_aol(Matrix square, Matrix x, bool rounds, float*) override {
    pass(8 * numel(square));
    pass(4 * numel(square));
    pass(8 * numel(square));
    pass(8 * numel(square));
    pass(8 * numel(x));
    finish(0, rounds, x);
    finish(0, rounds && square.rounded != nullptr, square);
  }
  Float16Ops& float16() override { return float16_; }

  DeviceWork work;

 private:
  static int64_t numel(const Matrix& matrix) { return matrix.batch * matrix.rows * matrix.cols; }
  void pass(int64_t bytes) {
    ++work.launches;
    work.bytes += bytes;
  }
  void finish(float diagonal, bool rounds, const Matrix& out) {
    if (diagonal != 0) ++work.launches;
    if (rounds) pass(6 * numel(out));
  }

  CountingFloat16Ops float16_{work};
};

}  // namespace

DeviceWork newton_schulz_work(const NewtonSchulzPlan& plan, int64_t count) {
  if (plan.apply.backend != ProductBackend::kTensors) return {};
  // Addresses that nothing is read from.
  auto* const nowhere = reinterpret_cast<float*>(uintptr_t{1} << 20);
  const std::vector<float*> matrices(static_cast<size_t>(count), nowhere);
  CountingProducts counting;
  NewtonSchulz(plan, counting).run(matrices, nowhere, 1);
  return counting.work;
}

}  // namespace zeromuon::ops
