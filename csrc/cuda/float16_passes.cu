#include "csrc/base/check.h"
#include "csrc/cuda/float16_ops.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

using ops::HalfMatrix;

constexpr int kThreads = 256;
constexpr int kMostMatrices = 8;  // that one kernel is told of
constexpr int kTile = 32, kTileRows = 8;
static_assert(ops::kNormParts == kThreads);

cudaStream_t stream_of(StreamRef stream) { return static_cast<cudaStream_t>(stream.handle); }

struct Matrices {
  const float* at[kMostMatrices];
  int count;
};

Matrices matrices_of(const ops::Places& places) {
  invariant(places.matrices.size() <= kMostMatrices, "a batch of ", places.matrices.size(),
            " matrices, at most ", kMostMatrices, " are expected");
  Matrices matrices{{}, static_cast<int>(places.matrices.size())};
  for (int k = 0; k < matrices.count; ++k) matrices.at[k] = places.matrices[k];
  return matrices;
}

unsigned blocks_for(int64_t work, int64_t each, int64_t most) {
  const int64_t blocks = (work + each - 1) / each;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// The sum over the block's threads, in an order of its own; valid in all of them.
__device__ double sum_of_block(double own) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

// blockIdx: part, matrix.
__global__ void sum_squares_of_parts(Matrices in, int64_t numel, double* parts) {
  const float* const matrix = in.at[blockIdx.y];
  const int64_t each = (numel + ops::kNormParts - 1) / ops::kNormParts;
  const int64_t begin = blockIdx.x * each, end = begin + each < numel ? begin + each : numel;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double value = matrix[i];
    sum += value * value;
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) parts[blockIdx.y * ops::kNormParts + blockIdx.x] = sum;
}

// blockIdx: columns, rows, matrix of the batch.
__global__ void normalize_rows(Matrices in, const double* parts, double scale, HalfMatrix out) {
  const int k = static_cast<int>(blockIdx.z);
  const bool there = k < in.count;
  const double sum = sum_of_block(there ? parts[k * ops::kNormParts + threadIdx.x] : 0.0);
  const double factor = ops::scale_of(sum, scale);
  Float16* const to = out.data + k * out.numel();
  for (int64_t row = blockIdx.y; row < out.rows; row += gridDim.y) {
    for (int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; col < out.cols;
         col += static_cast<int64_t>(gridDim.x) * kThreads) {
      to[row * out.stride + col] =
          there ? ops::scaled(in.at[k][row * out.cols + col], factor) : Float16{0};
    }
  }
}

// blockIdx: column and row of a tile of the lower triangle, matrix. A tile is written where it
// stands, and, turned, where the upper triangle has it.
__global__ void complete_tiles(HalfMatrix square, float diagonal, HalfMatrix copy) {
  __shared__ Float16 tile[kTile][kTile + 2];
  if (blockIdx.x > blockIdx.y) return;
  const int64_t m = square.rows;
  Float16* const at = square.data + blockIdx.z * square.numel();
  const int64_t row0 = int64_t{blockIdx.y} * kTile, col0 = int64_t{blockIdx.x} * kTile;
  for (int r = static_cast<int>(threadIdx.y); r < kTile; r += kTileRows) {
    const int64_t row = row0 + r, col = col0 + threadIdx.x;
    if (row >= m || col > row) continue;
    Float16 value = at[row * square.stride + col];
    if (copy.data != nullptr) {
      copy.data[blockIdx.z * copy.numel() + row * copy.stride + col] = value;
    }
    if (row == col && diagonal != 0) {
      value = ops::plus(value, diagonal);
      at[row * square.stride + col] = value;
    }
    tile[r][threadIdx.x] = value;
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.y); c < kTile; c += kTileRows) {
    const int64_t row = row0 + threadIdx.x, col = col0 + c;
    if (row < m && col < row) at[col * square.stride + row] = tile[threadIdx.x][c];
  }
}

// blockIdx: columns, rows, matrix.
__global__ void linear_rows(HalfMatrix in, float factor, float diagonal, HalfMatrix out) {
  for (int64_t row = blockIdx.y; row < in.rows; row += gridDim.y) {
    for (int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; col < in.cols;
         col += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Float16 value = in.data[blockIdx.z * in.numel() + row * in.stride + col];
      out.data[blockIdx.z * out.numel() + row * out.stride + col] =
          ops::linear(value, factor, row == col ? diagonal : 0.0f);
    }
  }
}

constexpr int64_t kColumnsAThread = 4, kMostRowBlocks = 512;

dim3 grid_of(const HalfMatrix& m) {
  return {blocks_for(m.cols, kThreads * kColumnsAThread, 1 << 16),
          blocks_for(m.rows, 1, kMostRowBlocks), static_cast<unsigned>(m.batch)};
}

}  // namespace

void sum_squares(StreamRef stream, const ops::Places& in, double* parts) {
  const Matrices matrices = matrices_of(in);
  const dim3 grid(ops::kNormParts, static_cast<unsigned>(matrices.count));
  sum_squares_of_parts<<<grid, kThreads, 0, stream_of(stream)>>>(matrices, in.numel(), parts);
  check(cudaGetLastError(), "sum_squares");
}

void normalize(StreamRef stream, const ops::Places& in, const double* parts, double scale,
               const HalfMatrix& out) {
  normalize_rows<<<grid_of(out), kThreads, 0, stream_of(stream)>>>(matrices_of(in), parts, scale,
                                                                   out);
  check(cudaGetLastError(), "normalize");
}

void complete(StreamRef stream, const HalfMatrix& square, float diagonal, const HalfMatrix& copy) {
  const auto tiles = static_cast<unsigned>((square.rows + kTile - 1) / kTile);
  const dim3 grid(tiles, tiles, static_cast<unsigned>(square.batch)), block(kTile, kTileRows);
  complete_tiles<<<grid, block, 0, stream_of(stream)>>>(square, diagonal, copy);
  check(cudaGetLastError(), "complete");
}

void linear(StreamRef stream, const HalfMatrix& in, float factor, float diagonal,
            const HalfMatrix& out) {
  linear_rows<<<grid_of(in), kThreads, 0, stream_of(stream)>>>(in, factor, diagonal, out);
  check(cudaGetLastError(), "linear");
}

}  // namespace zeromuon::cuda
