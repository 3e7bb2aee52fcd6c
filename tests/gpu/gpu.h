// What the tests on a GPU share. Where there is none they run on the fake device and on libtorch's
// CPU tensors, so that a broken test shows there; what only a GPU can tell is skipped.
#pragma once

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <memory>

#include "offload/cuda_device.h"
#include "offload/fake/fake_device.h"

namespace zeromuon::testing {

inline const c10::Device kGpu(at::kCUDA, 0);

inline bool has_gpu() { return at::globalContext().hasCUDA(); }

// Where tensors lie.
inline c10::Device place() { return has_gpu() ? kGpu : c10::Device(at::kCPU); }

inline std::unique_ptr<offload::Device> make_device() {
  if (has_gpu()) return std::make_unique<offload::CudaDevice>(kGpu);
  return std::make_unique<offload::FakeDevice>();
}

inline std::unique_ptr<ops::Products> make_products() {
  if (!has_gpu()) return ops::make_tensor_products();
  return ops::make_tensor_products(kGpu, std::make_unique<offload::CudaFloat16Ops>(kGpu));
}

class OnlyOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "there is no GPU";
  }
};

// Between buffers of the GPU; returns when the bytes are there.
void copy_on_gpu(std::byte* to, const std::byte* from, int64_t bytes);

}  // namespace zeromuon::testing
