// Single-threaded matrix products by oneDNN. Knows neither libtorch nor the rest of csrc/ops.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "csrc/base/cpu.h"
#include "csrc/base/dtype.h"

namespace zeromuon::ops::onednn {

// C[m, n] = A[m, k] B[k, n]; strides as in Gemm of csrc/ops/newton_schulz/gemm.h.
struct MatmulShape {
  DType dtype;  // of A and B, kFloat32 or kBFloat16; C is fp32
  int64_t m, n, k, a_stride, b_stride, c_stride;
  bool a_transposed, b_transposed;

  bool operator==(const MatmulShape&) const = default;
};

// Primitives, one per shape, made at its first use and kept.
// Thread: any number at a time; the primitives are guarded by a lock of their own.
class Matmuls {
 public:
  Matmuls();
  ~Matmuls();
  Matmuls(const Matmuls&) = delete;
  Matmuls& operator=(const Matmuls&) = delete;

  // On the calling thread, which must have been told to work alone (omp_set_num_threads(1)).
  void run(const MatmulShape& shape, const void* a, const void* b, float* c);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The version that runs, such as "2.6.3".
std::string version();

// The instruction set that oneDNN may use: max_cpu_isa(), or less where ONEDNN_MAX_CPU_ISA says so.
CpuIsa max_isa();

}  // namespace zeromuon::ops::onednn
