#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/ops/newton_schulz/products.h"

// Fortran BLAS, exported by the library that libtorch was built with.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);
// Present where that library is MKL.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace zeromuon::ops {
namespace {

// Note [Tiles]
// A product is cut into tiles of the result, and one thread computes a whole tile with one BLAS
// call. The tiling depends on the shape only, so the bits of a result don't depend on the number of
// threads; and a symmetric result costs half, because only the tiles of one triangle are computed.
struct Tiling {
  int64_t size, rows, cols;  // rows and cols: how many tiles
};

Tiling tiling_of(const Matrix& out) {
  const int64_t longest = std::max(out.rows, out.cols);
  const int64_t size = longest <= 512 ? 128 : 256;
  return {size, (out.rows + size - 1) / size, (out.cols + size - 1) / size};
}

// Keeps BLAS on the calling thread for the life of the object.
class SingleThreadedBlas {
 public:
  SingleThreadedBlas() : previous_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~SingleThreadedBlas() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(previous_);
  }
  SingleThreadedBlas(const SingleThreadedBlas&) = delete;
  SingleThreadedBlas& operator=(const SingleThreadedBlas&) = delete;

 private:
  int previous_;
};

struct Tile {
  int64_t row, col, rows, cols;
};

Tile tile_at(const Tiling& tiling, const Matrix& out, int64_t i, int64_t j) {
  const int64_t row = i * tiling.size, col = j * tiling.size;
  return {row, col, std::min(tiling.size, out.rows - row), std::min(tiling.size, out.cols - col)};
}

// Row-major C = A*B is column-major C^T = B^T*A^T, so the operands change places.
void multiply_tile(const Operand& a, const Operand& b, int64_t inner, float alpha, float beta,
                   const Matrix& out, const Tile& tile) {
  const float* a_data = a.data + (a.transposed ? tile.row : tile.row * a.stride);
  const float* b_data = b.data + (b.transposed ? tile.col * b.stride : tile.col);
  const int m = static_cast<int>(tile.cols), n = static_cast<int>(tile.rows);
  const int k = static_cast<int>(inner), lda = static_cast<int>(b.stride),
            ldb = static_cast<int>(a.stride), ldc = static_cast<int>(out.cols);
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &m, &n, &k, &alpha, b_data, &lda,
         a_data, &ldb, &beta, out.data + tile.row * out.cols + tile.col, &ldc);
}

// Copies a tile below the diagonal to its place above it; inside a diagonal tile, its lower half.
void mirror_tile(const Matrix& out, const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r;
    const int64_t end = std::min(tile.col + tile.cols, row);
    for (int64_t col = tile.col; col < end; ++col) {
      out.data[col * out.cols + row] = out.data[row * out.cols + col];
    }
  }
}

// The k-th tile of the lower triangle, counted row by row, largest rows first.
std::pair<int64_t, int64_t> triangle_tile(int64_t k) {
  int64_t i = 0;
  while ((i + 1) * (i + 2) / 2 <= k) ++i;
  return {i, k - i * (i + 1) / 2};
}

class HostProducts final : public Products {
 public:
  void general(Operand a, Operand b, int64_t inner, float alpha, float beta, Matrix out) override {
    const Tiling tiling = tiling_of(out);
#pragma omp parallel
    {
      SingleThreadedBlas single;
#pragma omp for schedule(dynamic)
      for (int64_t t = 0; t < tiling.rows * tiling.cols; ++t) {
        multiply_tile(a, b, inner, alpha, beta, out,
                      tile_at(tiling, out, t / tiling.cols, t % tiling.cols));
      }
    }
  }

  void symmetric(Operand a, Operand b, int64_t inner, float alpha, float beta,
                 Matrix out) override {
    const Tiling tiling = tiling_of(out);
#pragma omp parallel
    {
      SingleThreadedBlas single;
#pragma omp for schedule(dynamic)
      for (int64_t t = 0; t < tiling.rows * (tiling.rows + 1) / 2; ++t) {
        const auto [i, j] = triangle_tile(t);
        const Tile tile = tile_at(tiling, out, i, j);
        multiply_tile(a, b, inner, alpha, beta, out, tile);
        mirror_tile(out, tile);
      }
    }
  }

  void scale(Matrix in, double factor, Matrix out) override {
    const int64_t numel = in.rows * in.cols;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < numel; ++i) {
      out.data[i] = static_cast<float>(static_cast<double>(in.data[i]) * factor);
    }
  }

  void copy(Matrix in, Matrix out) override {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < in.rows; ++r) {
      std::memcpy(out.data + r * in.cols, in.data + r * in.cols, sizeof(float) * in.cols);
    }
  }

  void add_to_diagonal(Matrix square, float value) override {
    for (int64_t i = 0; i < square.rows; ++i) square.data[i * square.cols + i] += value;
  }

  // Partial sums of fixed chunks, added up in order: the same bits for any number of threads.
  double squared_norm(Matrix in, double* partial_sums) override {
    const int64_t numel = in.rows * in.cols;
    const int64_t chunks = (numel + kNormChunk - 1) / kNormChunk;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) {
      double sum = 0;
      for (int64_t i = c * kNormChunk; i < std::min(numel, (c + 1) * kNormChunk); ++i) {
        sum += static_cast<double>(in.data[i]) * static_cast<double>(in.data[i]);
      }
      partial_sums[c] = sum;
    }
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partial_sums[c];
    return total;
  }

  void scale_rows_aol(Matrix square, Matrix x, bool x_is_tall, float* d) override {
    const int64_t m = square.rows;
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < m; ++j) sum += std::fabs(square.data[i * m + j]);
      d[i] = sum > 0 ? static_cast<float>(1.0 / std::sqrt(sum)) : 0.0f;
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < m; ++j) square.data[i * m + j] *= d[i] * d[j];
    }
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) x.data[r * x.cols + c] *= d[x_is_tall ? c : r];
    }
  }
};

}  // namespace

Products& host_products() {
  static HostProducts products;  // has no state
  return products;
}

}  // namespace zeromuon::ops
