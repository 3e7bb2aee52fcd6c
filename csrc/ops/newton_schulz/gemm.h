// One matrix product on the calling thread, by the library that a plan names.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"
#include "csrc/ops/newton_schulz/plan.h"

#ifdef ZEROMUON_WITH_ONEDNN
#include "csrc/ops/onednn/matmul.h"
#endif

namespace zeromuon::ops {

// C[m, n] = A[m, k] B[k, n], C fp32. Strides in elements from one stored row to the next; a
// transposed factor is stored [k, m] or [n, k].
struct Gemm {
  DType dtype;  // of A and B
  int64_t m, n, k;
  const void* a;
  int64_t a_stride;
  bool a_transposed;
  const void* b;
  int64_t b_stride;
  bool b_transposed;
  float* c;
  int64_t c_stride;
};

// Thread: any number at a time.
class GemmBackends {
 public:
  // Raises ValueError when the backend cannot do it.
  void run(ProductBackend backend, const Gemm& gemm);

 private:
#ifdef ZEROMUON_WITH_ONEDNN
  onednn::Matmuls onednn_;
#endif
};

// For the life of the object, libraries that are called from this thread use it alone.
class SingleThread {
 public:
  SingleThread();
  ~SingleThread();
  SingleThread(const SingleThread&) = delete;
  SingleThread& operator=(const SingleThread&) = delete;

 private:
  int openmp_, mkl_;
};

}  // namespace zeromuon::ops
