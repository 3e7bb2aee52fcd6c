#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/base/check.h"
#include "csrc/base/parallel.h"
#include "csrc/ops/newton_schulz/gemm.h"
#include "csrc/ops/newton_schulz/products.h"
#include "csrc/ops/newton_schulz/tile_ops.h"

namespace zeromuon::ops {

const TileOps& tile_ops() {
#if defined(__x86_64__)
  if (cpu_can(CpuIsa::kAvx2)) return avx2::tile_ops();
#endif
  return generic::tile_ops();
}

namespace {

constexpr int64_t kChunk = 16384;  // elements that a thread takes at once
constexpr int64_t kBand = 64;      // rows or columns that a transposition takes at once

template <typename T>
T* offset(T* data, int64_t by) {
  return data == nullptr ? nullptr : data + by;
}

// The element (row, col) of a factor as it is read.
const void* address(const Operand& operand, int64_t row, int64_t col) {
  if (operand.transposed) std::swap(row, col);
  const int64_t at = row * operand.matrix.stride + col;
  return operand.rounded ? static_cast<const void*>(operand.matrix.rounded + at)
                         : static_cast<const void*>(operand.matrix.data + at);
}

class HostProducts final : public Products {
 public:
  void multiply(const Product& product) override {
    const std::vector<Tile>& tiles = product.plan.tiles;
    invariant(!tiles.empty(), "a plan for ", name_of(product.plan.backend), " met host memory");
    parallel_for(static_cast<int64_t>(tiles.size()), omp_get_max_threads(), [&](int64_t t, int) {
      const SingleThread alone;
      compute(product, tiles[t]);
      finish(product, tiles[t]);
    });
  }

  void normalize(const Caller& in, double safety, bool rounds, Matrix out,
                 double* partial_sums) override {
    const float* u = in.matrices[0];
    const double norm = std::sqrt(squared_norm(u, out.rows * out.cols, partial_sums));
    const double factor = norm == 0 ? 0.0 : 1.0 / (safety * norm);
    if (!in.tall()) return scale(u, out.cols, factor, rounds, out);
    for_bands(in.rows, [&](int64_t begin, int64_t count) {
      tile_ops().transpose(u + begin * in.cols, in.cols, out.data + begin, out.stride, count,
                           in.cols);
    });
    scale(out.data, out.stride, factor, rounds, out);
  }

  void store(const Matrix& wide, const Caller& out, float* spare) override {
    float* matrix = out.matrices[0];
    if (!out.tall()) return;  // a wide result is in the caller's memory already
    Matrix from = wide;
    if (from.data == matrix) {
      from.data = spare;
      for_rows(wide, [&](int64_t row) {
        std::memcpy(from.data + row * from.stride, wide.data + row * wide.stride,
                    sizeof(float) * wide.cols);
      });
    }
    for_bands(out.rows, [&](int64_t begin, int64_t count) {
      tile_ops().transpose(from.data + begin, from.stride, matrix + begin * out.cols, out.cols,
                           out.cols, count);
    });
  }

  void linear(const Matrix& in, float factor, float diagonal, bool rounds, Matrix out) override {
    scale(in.data, in.stride, factor, false, out);
    for (int64_t i = 0; i < out.rows; ++i) out.data[i * out.stride + i] += diagonal;
    if (rounds) round(out);
  }

  void scale_rows_aol(Matrix square, Matrix x, bool rounds, float* d) override {
    const int64_t m = square.rows;
    for_rows(square, [&](int64_t i) {
      double sum = 0;
      for (int64_t j = 0; j < m; ++j) sum += std::fabs(square.data[i * square.stride + j]);
      d[i] = sum > 0 ? static_cast<float>(1.0 / std::sqrt(sum)) : 0.0f;
    });
    for_rows(square, [&](int64_t i) {
      for (int64_t j = 0; j < m; ++j) square.data[i * square.stride + j] *= d[i] * d[j];
      for (int64_t j = 0; j < x.cols; ++j) x.data[i * x.stride + j] *= d[i];
    });
    if (rounds) round(x);
    if (rounds && square.rounded != nullptr) round(square);
  }

 private:
  void compute(const Product& product, const Tile& tile) {
    const Matrix& out = product.out;
    const Operand &a = product.a, &b = product.b;
    const int64_t inner = a.transposed ? a.matrix.rows : a.matrix.cols;
    backends_.run(
        product.plan.backend,
        {a.rounded ? DType::kBFloat16 : DType::kFloat32, tile.rows, tile.cols, inner,
         address(a, tile.row, 0), a.matrix.stride, a.transposed, address(b, 0, tile.col),
         b.matrix.stride, b.transposed, out.data + tile.row * out.stride + tile.col, out.stride});
  }

  void finish(const Product& product, const Tile& tile) {
    const Matrix& out = product.out;
    const int64_t at = tile.row * out.stride + tile.col;
    const int64_t mirrored = tile.col * out.stride + tile.row;
    const int64_t added = tile.row * product.addend_stride + tile.col;
    BFloat16* rounded = product.rounds ? out.rounded : nullptr;
    const bool bare = product.alpha == 1.0f && product.beta == 0.0f && rounded == nullptr;
    if (bare && !product.symmetric) return;
    tile_ops().finish({tile.rows, tile.cols, out.stride, out.data + at,
                       product.beta == 0.0f ? nullptr : product.addend + added,
                       product.addend_stride, offset(rounded, at),
                       product.symmetric ? out.data + mirrored : nullptr,
                       product.symmetric ? offset(rounded, mirrored) : nullptr, product.alpha,
                       product.beta, product.symmetric && tile.row == tile.col, product.diagonal});
  }

  // Partial sums of fixed chunks, added up in order: the same bits for any number of threads.
  static double squared_norm(const float* in, int64_t numel, double* partial_sums) {
    const int64_t chunks = (numel + kNormChunk - 1) / kNormChunk;
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * kNormChunk;
      partial_sums[c] = tile_ops().sum_of_squares(in + begin, std::min(kNormChunk, numel - begin));
    }
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partial_sums[c];
    return total;
  }

  // Calls body(begin, count) for chunks of [0, numel).
  template <typename Body>
  static void for_chunks(int64_t numel, int64_t size, const Body& body) {
    const int64_t chunks = (numel + size - 1) / size;
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c) body(c * size, std::min(size, numel - c * size));
  }

  template <typename Body>
  static void for_bands(int64_t extent, const Body& body) {
    for_chunks(extent, kBand, body);
  }

  template <typename Body>
  static void for_rows(const Matrix& matrix, const Body& body) {
    const int64_t rows = std::max<int64_t>(1, kChunk / matrix.cols);
    for_chunks(matrix.rows, rows, [&](int64_t begin, int64_t count) {
      for (int64_t row = begin; row < begin + count; ++row) body(row);
    });
  }

  // out = factor * in.
  static void scale(const float* in, int64_t in_stride, double factor, bool rounds,
                    const Matrix& out) {
    for_rows(out, [&](int64_t row) {
      const int64_t at = row * out.stride;
      tile_ops().scale(in + row * in_stride, factor, out.data + at,
                       rounds ? out.rounded + at : nullptr, out.cols);
    });
  }

  static void round(const Matrix& matrix) {
    for_rows(matrix, [&](int64_t row) {
      const int64_t at = row * matrix.stride;
      tile_ops().round(matrix.data + at, matrix.rounded + at, matrix.cols);
    });
  }

  GemmBackends backends_;
};

}  // namespace

std::unique_ptr<Products> make_host_products() { return std::make_unique<HostProducts>(); }

}  // namespace zeromuon::ops
