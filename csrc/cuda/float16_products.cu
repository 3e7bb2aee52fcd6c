#include <cublas_v2.h>

#include <stdexcept>

#include "csrc/base/check.h"
#include "csrc/cuda/float16_ops.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(concat("cuBLAS: ", what, ": ", cublasGetStatusString(status)));
}

// Of cuBLAS, which has columns where we have rows: out^T = b^T a^T.
struct Factor {
  cublasOperation_t operation;
  const void* data;
  int stride;
  long long next;
};

Factor factor_of(const ops::HalfFactor& factor) {
  const ops::HalfMatrix& m = factor.matrix;
  return {factor.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, m.data, static_cast<int>(m.stride),
          static_cast<long long>(m.numel())};
}

int64_t inner_of(const ops::HalfFactor& a) { return a.transposed ? a.matrix.rows : a.matrix.cols; }

// Where the blocks of the factors and of the result begin.
struct BlockBases {
  Float16 *a, *b, *out;
  int64_t a_next, b_next, out_next;  // elements to the next matrix
  int64_t a_block, b_block;          // to the next block of rows of a, of columns of b
  int64_t out_block_row, out_block_col;
};

__global__ void write_pointers(BlockBases bases, int blocks, int total, void** pointers) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= total) return;
  const int matrix = index / blocks;
  const ops::BlockPlace at = ops::block_at(index % blocks);
  pointers[index] = bases.a + matrix * bases.a_next + at.row * bases.a_block;
  pointers[total + index] = bases.b + matrix * bases.b_next + at.col * bases.b_block;
  pointers[2 * total + index] = bases.out + matrix * bases.out_next + at.row * bases.out_block_row +
                                at.col * bases.out_block_col;
}

}  // namespace

Float16Products::~Float16Products() {
  if (handle_ != nullptr) cublasDestroy(static_cast<cublasHandle_t>(handle_));
}

void Float16Products::use_workspace(std::byte* memory, int64_t bytes) {
  workspace_ = memory;
  workspace_bytes_ = bytes;
}

void* Float16Products::prepared(StreamRef stream) {
  if (handle_ == nullptr) {
    cublasHandle_t made;
    check(cublasCreate(&made), "make a handle");
    handle_ = made;
    check(cublasSetMathMode(
              made, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                              CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
          "set the mode");
  }
  const auto handle = static_cast<cublasHandle_t>(handle_);
  check(cublasSetStream(handle, static_cast<cudaStream_t>(stream.handle)), "set the stream");
  check(cublasSetWorkspace(handle, workspace_, static_cast<size_t>(workspace_bytes_)),
        "set the workspace");  // after the stream, with which it falls back to cuBLAS' own
  return handle_;
}

void Float16Products::multiply(StreamRef stream, const ops::HalfProduct& product) {
  const auto handle = static_cast<cublasHandle_t>(prepared(stream));
  const ops::HalfMatrix& out = product.out;
  const Factor a = factor_of(product.a), b = factor_of(product.b);
  const int count = product.blocks.count, inner = static_cast<int>(inner_of(product.a));
  const int rows = static_cast<int>(out.rows) / count, cols = static_cast<int>(out.cols) / count;
  const int stride = static_cast<int>(out.stride);
  if (count == 1) {
    check(cublasGemmStridedBatchedEx(
              handle, b.operation, a.operation, cols, rows, inner, &product.alpha, b.data,
              CUDA_R_16F, b.stride, b.next, a.data, CUDA_R_16F, a.stride, a.next, &product.beta,
              out.data, CUDA_R_16F, stride, static_cast<long long>(out.numel()),
              static_cast<int>(out.batch), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiply");
    return;
  }
  const ops::HalfMatrix &am = product.a.matrix, &bm = product.b.matrix;
  const BlockBases bases{am.data,
                         bm.data,
                         out.data,
                         am.numel(),
                         bm.numel(),
                         out.numel(),
                         product.a.transposed ? rows : rows * am.stride,
                         product.b.transposed ? cols * bm.stride : cols,
                         rows * out.stride,
                         cols};
  const int blocks = static_cast<int>(product.blocks.numel());
  const int total = blocks * static_cast<int>(out.batch);
  constexpr int kThreads = 128;
  write_pointers<<<(total + kThreads - 1) / kThreads, kThreads, 0,
                   static_cast<cudaStream_t>(stream.handle)>>>(bases, blocks, total,
                                                               product.pointers);
  check(cudaGetLastError(), "addresses of blocks");
  check(cublasGemmBatchedEx(handle, b.operation, a.operation, cols, rows, inner, &product.alpha,
                            product.pointers + total, CUDA_R_16F, b.stride, product.pointers,
                            CUDA_R_16F, a.stride, &product.beta, product.pointers + 2 * total,
                            CUDA_R_16F, stride, total, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "multiply blocks");
}

void Float16Products::multiply_to(StreamRef stream, const ops::HalfFactor& a,
                                  const ops::HalfFactor& b, float alpha, const ops::Places& out) {
  const auto handle = static_cast<cublasHandle_t>(prepared(stream));
  const float beta = 0;
  const Factor left = factor_of(a), right = factor_of(b);
  const int rows = static_cast<int>(out.rows), cols = static_cast<int>(out.cols);
  for (size_t k = 0; k < out.matrices.size(); ++k) {
    const auto* const a_at = a.matrix.data + static_cast<int64_t>(k) * a.matrix.numel();
    const auto* const b_at = b.matrix.data + static_cast<int64_t>(k) * b.matrix.numel();
    check(cublasGemmEx(handle, right.operation, left.operation, cols, rows,
                       static_cast<int>(inner_of(a)), &alpha, b_at, CUDA_R_16F, right.stride, a_at,
                       CUDA_R_16F, left.stride, &beta, out.matrices[k], CUDA_R_32F, cols,
                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiply");
  }
}

}  // namespace zeromuon::cuda
