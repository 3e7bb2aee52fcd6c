#include "offload/cuda_device.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "csrc/base/check.h"
#include "csrc/cuda/elementwise.h"

namespace zeromuon::offload {
namespace {

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

cuda::Alarm on_device(Alarm alarm) { return {alarm.word, alarm.code}; }

}  // namespace

CudaDevice::CudaDevice(c10::Device device)
    : device_(device), products_(ops::make_tensor_products(device)) {
  invariant(device.is_cuda() && device.has_index(),
            "CudaDevice: expected a GPU with its index, got ", device.str());
}

Memory CudaDevice::allocate(int64_t bytes) {
  auto owner = std::make_shared<at::Tensor>(
      at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_)));
  wait_for_caller();
  auto* data = static_cast<std::byte*>(owner->data_ptr());
  return Memory(std::move(owner), data);
}

void CudaDevice::copy_to_device(void* device, const void* host, int64_t bytes) {
  cuda::copy_to_device(CurrentStream(device_), device, host, bytes);
}

void CudaDevice::copy_to_host(void* host, const void* device, int64_t bytes) {
  cuda::copy_to_host(CurrentStream(device_), host, device, bytes);
}

void CudaDevice::update_momentum(const ops::MomentumElement& element,
                                 const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) {
  cuda::update_momentum(CurrentStream(device_), element, arrays, numel, on_device(alarm));
}

void CudaDevice::apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays,
                              int64_t numel) {
  cuda::apply_update(CurrentStream(device_), element, arrays, numel);
}

void CudaDevice::adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
                       int64_t numel) {
  cuda::adamw(CurrentStream(device_), element, arrays, numel);
}

void CudaDevice::encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                             Alarm alarm) {
  cuda::encode_wire(CurrentStream(device_), values, wire, numel, on_device(alarm));
}

void CudaDevice::decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) {
  cuda::decode_wire(CurrentStream(device_), wire, values, numel);
}

void CudaDevice::orthogonalize(const ops::NewtonSchulz& newton_schulz,
                               std::span<float* const> matrices, float* scratch, int lanes) {
  newton_schulz.run(matrices, scratch, lanes);
}

void CudaDevice::set_word(uint64_t* at, uint64_t value) {
  cuda::set_word(CurrentStream(device_), at, value);
}

void CudaDevice::copy_word(uint64_t* to, const uint64_t* from) {
  cuda::copy_word(CurrentStream(device_), to, from);
}

void CudaDevice::read_word(uint64_t* host, const uint64_t* at) {
  cuda::read_word(CurrentStream(device_), host, at);
}

void CudaDevice::wait_for_caller() { cuda::synchronize(CurrentStream(device_)); }

std::string CudaRegistrar::register_memory(void* at, int64_t bytes) {
  const c10::DeviceGuard guard(device_);
  return cuda::register_memory(at, bytes);
}

// Registered memory is registered for all devices, whichever is current.
void CudaRegistrar::unregister_memory(void* at) { cuda::unregister_memory(at); }

}  // namespace zeromuon::offload
