#include "csrc/ops/newton_schulz/time_product.h"

#include <algorithm>
#include <ctime>
#include <limits>
#include <vector>

#include "csrc/ops/newton_schulz/gemm.h"
#include "csrc/ops/newton_schulz/products.h"
#include "csrc/ops/newton_schulz/scratch.h"

namespace zeromuon::ops {
namespace {

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Storage {
  std::vector<float> values;
  std::vector<BFloat16> rounded;

  Matrix matrix(int64_t rows, int64_t cols) {
    const int64_t stride = row_stride(cols);
    values.resize(rows * stride);
    rounded.resize(rows * stride);
    for (int64_t i = 0; i < rows * stride; ++i) {
      values[i] = 1e-3f * static_cast<float>((i * 7919) % 1009 - 504);
      encode(values[i], rounded[i]);
    }
    return {values.data(), rounded.data(), rows, cols, stride, 1};
  }
};

}  // namespace

ProductTiming time_product(const TunedProduct& row, int64_t long_side, int repetitions) {
  const int64_t m = row.short_side, n = long_side;
  const bool rounded = row.dtype != DType::kFloat32, symmetric = row.kind != ProductKind::kApply;
  const int64_t inner = row.kind == ProductKind::kGram ? n : m, cols = symmetric ? m : n;
  Storage storage[3];
  const Matrix a = storage[0].matrix(m, inner);
  const Matrix b = row.kind == ProductKind::kGram ? a : storage[1].matrix(m, cols);
  const ProductPlan plan = cut_product(row, m, cols, symmetric);
  Product product{
      plan, {a, false, rounded}, {b, row.kind == ProductKind::kGram || row.transposed, rounded}};
  product.out = storage[2].matrix(m, cols);
  product.symmetric = symmetric;
  product.rounds = rounded;
  if (row.kind != ProductKind::kGram) {
    product.alpha = 0.5f;
    product.beta = 0.25f;
    product.addend = b.data;
    product.addend_stride = b.stride;
  }
  const SingleThread alone;
  const std::unique_ptr<Products> products = make_host_products();
  products->multiply(product);
  double least = std::numeric_limits<double>::max();
  for (int i = 0; i < repetitions; ++i) {
    const double start = thread_seconds();
    products->multiply(product);
    least = std::min(least, thread_seconds() - start);
  }
  return {least,
          2 * static_cast<double>(inner) * plan.computed_numel(static_cast<double>(m * cols))};
}

}  // namespace zeromuon::ops
