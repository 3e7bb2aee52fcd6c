#include "csrc/ops/newton_schulz/gemm.h"

#include <omp.h>

#include "csrc/base/check.h"

// Fortran BLAS, exported by the library that libtorch was built with.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);
// Present where that library is MKL.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace zeromuon::ops {
namespace {

// Row-major C = A*B is column-major C^T = B^T*A^T, so the factors change places.
void blas(const Gemm& gemm) {
  const float one = 1.0f, zero = 0.0f;
  const int m = static_cast<int>(gemm.n), n = static_cast<int>(gemm.m),
            k = static_cast<int>(gemm.k), lda = static_cast<int>(gemm.b_stride),
            ldb = static_cast<int>(gemm.a_stride), ldc = static_cast<int>(gemm.c_stride);
  sgemm_(gemm.b_transposed ? "T" : "N", gemm.a_transposed ? "T" : "N", &m, &n, &k, &one,
         static_cast<const float*>(gemm.b), &lda, static_cast<const float*>(gemm.a), &ldb, &zero,
         gemm.c, &ldc);
}

}  // namespace

ProductTarget this_cpu() {
#ifdef ZEROMUON_WITH_ONEDNN
  return {.isa = onednn::max_isa(), .onednn = true, .family = cpu_family()};
#else
  return {.isa = max_cpu_isa(), .family = cpu_family()};
#endif
}

void GemmBackends::run(ProductBackend backend, const Gemm& gemm) {
#ifdef ZEROMUON_WITH_ONEDNN
  if (backend == ProductBackend::kOneDnn) {
    return onednn_.run({gemm.dtype, gemm.m, gemm.n, gemm.k, gemm.a_stride, gemm.b_stride,
                        gemm.c_stride, gemm.a_transposed, gemm.b_transposed},
                       gemm.a, gemm.b, gemm.c);
  }
#endif
  require(backend == ProductBackend::kBlas && gemm.dtype == DType::kFloat32,
          "Newton-Schulz: this build cannot multiply ", name_of(gemm.dtype), " matrices with ",
          name_of(backend), "; rebuild it with oneDNN (libdnnl-dev)");
  blas(gemm);
}

SingleThread::SingleThread()
    : openmp_(omp_get_max_threads()),
      mkl_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {
  omp_set_num_threads(1);
}

SingleThread::~SingleThread() {
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(mkl_);
  omp_set_num_threads(openmp_);
}

}  // namespace zeromuon::ops
