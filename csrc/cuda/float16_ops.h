// The Float16Ops of csrc/ops/newton_schulz on CUDA memory: products by cuBLAS, and kernels with
// the same arithmetic for what is between them. How they are ordered and what they raise:
// csrc/cuda/runtime.h.
#pragma once

#include "csrc/cuda/runtime.h"
#include "csrc/ops/newton_schulz/float16_ops.h"

namespace zeromuon::cuda {

// A cuBLAS handle, made by the first product, on the device that is current then. Sums are fp32,
// never reduced in 16 bits, and the bits of a result are those of shape and workspace.
// Thread: one at a time.
class Float16Products {
 public:
  Float16Products() = default;
  ~Float16Products();
  Float16Products(const Float16Products&) = delete;
  Float16Products& operator=(const Float16Products&) = delete;

  // For the products that follow; 256-byte aligned.
  void use_workspace(std::byte* memory, int64_t bytes);
  void multiply(StreamRef stream, const ops::HalfProduct& product);
  void multiply_to(StreamRef stream, const ops::HalfFactor& a, const ops::HalfFactor& b,
                   float alpha, const ops::Places& out);

 private:
  void* prepared(StreamRef stream);

  void* handle_ = nullptr;
  std::byte* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
};

void sum_squares(StreamRef stream, const ops::Places& in, double* parts);
void normalize(StreamRef stream, const ops::Places& in, const double* parts, double scale,
               const ops::HalfMatrix& out);
void complete(StreamRef stream, const ops::HalfMatrix& square, float diagonal,
              const ops::HalfMatrix& copy);
void linear(StreamRef stream, const ops::HalfMatrix& in, float factor, float diagonal,
            const ops::HalfMatrix& out);

}  // namespace zeromuon::cuda
