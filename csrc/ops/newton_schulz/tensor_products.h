// Whole products by libtorch.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "csrc/ops/newton_schulz/products.h"

namespace zeromuon::ops {

// On the CPU: the arithmetic that the GPU's is tested with and against.
std::unique_ptr<Float16Ops> make_tensor_float16_ops();

// On memory of `device`. float16: of the same memory.
std::unique_ptr<Products> make_tensor_products(c10::Device device,
                                               std::unique_ptr<Float16Ops> float16);

// On the CPU.
inline std::unique_ptr<Products> make_tensor_products() {
  return make_tensor_products(c10::kCPU, make_tensor_float16_ops());
}

}  // namespace zeromuon::ops
