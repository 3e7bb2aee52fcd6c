// The Device of a GPU, and the pinning of host memory for its copies.
//
// Note [Streams are the lanes']
// An operation goes to the current libtorch stream of the thread that calls it, so that libtorch's
// products, c10d's collectives and our kernels keep one order. A lane makes a stream current in its
// thread once and waits for it after every task; memory passes from lane to lane only then. With
// Backend::hands_over a task may leave an event in place of the wait, and the next lane's stream
// waits for that: the host does so only where it, or the CPU, needs what is there.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "csrc/base/check.h"
#include "csrc/cuda/elementwise.h"
#include "csrc/cuda/float16_ops.h"
#include "csrc/ops/newton_schulz/tensor_products.h"
#include "offload/device.h"
#include "offload/pinned_arena.h"

namespace zeromuon::offload {

// The calling thread's current stream of a device, which is the current device meanwhile.
class CurrentStream {
 public:
  explicit CurrentStream(c10::Device device)
      : guard_(device),
        stream_{c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle()} {}

  operator cuda::StreamRef() const { return stream_; }

 private:
  c10::DeviceGuard guard_;
  cuda::StreamRef stream_;
};

class CudaFloat16Ops final : public ops::Float16Ops {
 public:
  explicit CudaFloat16Ops(c10::Device device) : device_(device) {}

  void use_workspace(std::byte* memory, int64_t bytes) override {
    products_.use_workspace(memory, bytes);
  }
  void sum_squares(const ops::Places& in, double* parts) override {
    cuda::sum_squares(CurrentStream(device_), in, parts);
  }
  void normalize(const ops::Places& in, const double* parts, double scale,
                 ops::HalfMatrix out) override {
    cuda::normalize(CurrentStream(device_), in, parts, scale, out);
  }
  void multiply(const ops::HalfProduct& product) override {
    products_.multiply(CurrentStream(device_), product);
  }
  void multiply_to(const ops::HalfFactor& a, const ops::HalfFactor& b, float alpha,
                   const ops::Places& out) override {
    products_.multiply_to(CurrentStream(device_), a, b, alpha, out);
  }
  void complete(ops::HalfMatrix square, float diagonal, ops::HalfMatrix copy) override {
    cuda::complete(CurrentStream(device_), square, diagonal, copy);
  }
  void linear(ops::HalfMatrix in, float factor, float diagonal, ops::HalfMatrix out) override {
    cuda::linear(CurrentStream(device_), in, factor, diagonal, out);
  }

 private:
  c10::Device device_;
  cuda::Float16Products products_;
};

// Thread: as Device, with Newton-Schulz on one lane; nothing else changes after construction.
class CudaDevice final : public Device {
 public:
  // device: a GPU, with its index.
  explicit CudaDevice(c10::Device device)
      : device_(device),
        products_(ops::make_tensor_products(device, std::make_unique<CudaFloat16Ops>(device))) {
    invariant(device.is_cuda() && device.has_index(),
              "CudaDevice: expected a GPU with its index, got ", device.str());
  }

  // From libtorch's caching allocator. Waits for the caller's stream: the allocator hands out
  // memory that work queued there may still use, and lanes have streams of their own.
  Memory allocate(int64_t bytes) override {
    auto owner = std::make_shared<at::Tensor>(
        at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_)));
    wait_for_caller();
    auto* data = static_cast<std::byte*>(owner->data_ptr());
    return Memory(std::move(owner), data);
  }

  void copy_to_device(void* device, const void* host, int64_t bytes) override {
    cuda::copy_to_device(CurrentStream(device_), device, host, bytes);
  }
  void copy_to_host(void* host, const void* device, int64_t bytes) override {
    cuda::copy_to_host(CurrentStream(device_), host, device, bytes);
  }

  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, Alarm alarm) override {
    cuda::update_momentum(CurrentStream(device_), element, arrays, numel, alarm);
  }
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays, int64_t numel,
                    Alarm alarm) override {
    cuda::apply_update(CurrentStream(device_), element, arrays, numel, alarm);
  }
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays, int64_t numel,
             Alarm alarm) override {
    cuda::adamw(CurrentStream(device_), element, arrays, numel, alarm);
  }
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   Alarm alarm) override {
    cuda::encode_wire(CurrentStream(device_), values, wire, numel, alarm);
  }
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override {
    cuda::decode_wire(CurrentStream(device_), wire, values, numel);
  }
  void update_momenta(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                      std::span<const ops::Run> runs, uint64_t* word) override {
    cuda::update_momenta(CurrentStream(device_), element, arrays, runs, word);
  }
  void apply_updates(std::span<const ops::ApplyElement> elements, const ops::ApplyArrays& arrays,
                     std::span<const ops::Run> runs, uint64_t* word) override {
    cuda::apply_updates(CurrentStream(device_), elements, arrays, runs, word);
  }
  void encode_runs(const float* values, const ops::Typed& wire, std::span<const ops::Run> runs,
                   uint64_t* word) override {
    cuda::encode_runs(CurrentStream(device_), values, wire, runs, word);
  }
  void decode_runs(const ops::ConstTyped& wire, float* values,
                   std::span<const ops::Run> runs) override {
    cuda::decode_runs(CurrentStream(device_), wire, values, runs);
  }
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override {
    newton_schulz.run(matrices, scratch, lanes);
  }

  void set_word(uint64_t* at, uint64_t value) override {
    cuda::set_word(CurrentStream(device_), at, value);
  }
  void read_word(uint64_t* host, const uint64_t* at) override {
    cuda::read_word(CurrentStream(device_), host, at);
  }
  void spread_word(const Words& words) override {
    cuda::spread_word(CurrentStream(device_), words.buffer, words.offsets);
  }
  void read_words(uint64_t* host, const Words& words) override {
    cuda::read_words(CurrentStream(device_), host, words.buffer, words.offsets, kBlockAlignment);
  }

  ops::Products& products() override { return *products_; }
  void wait_for_caller() override { cuda::synchronize(CurrentStream(device_)); }

 private:
  c10::Device device_;
  std::unique_ptr<ops::Products> products_;
};

// Registers host memory for the copies of every GPU of this process.
// Thread: as Registrar.
class CudaRegistrar final : public Registrar {
 public:
  // device: where CUDA is started if this process has not used it yet.
  explicit CudaRegistrar(c10::Device device) : device_(device) {}

  std::string register_memory(void* at, int64_t bytes) override {
    const c10::DeviceGuard guard(device_);
    return cuda::register_memory(at, bytes);
  }
  // Registered memory is registered for all devices, whichever is current.
  void unregister_memory(void* at) override { cuda::unregister_memory(at); }

 private:
  c10::Device device_;
};

}  // namespace zeromuon::offload
