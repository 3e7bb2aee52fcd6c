#include "offload/host_device.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"

namespace zeromuon::offload {
namespace {

constexpr int64_t kAlignmentBytes = 64;

}  // namespace

HostDevice::HostDevice(ops::CpuKernels kernels)
    : kernels_(ops::resolve(kernels)), products_(ops::make_host_products()) {}

Memory HostDevice::allocate(int64_t bytes) {
  invariant(bytes >= 0, "host device: asked for ", bytes, " bytes");
  const int64_t whole = (bytes / kAlignmentBytes + 1) * kAlignmentBytes;
  void* memory = std::aligned_alloc(kAlignmentBytes, static_cast<size_t>(whole));
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<std::byte*>(memory), [](std::byte* at) { std::free(at); });
}

void HostDevice::copy_to_device(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void HostDevice::copy_to_host(void* host, const void* device, int64_t bytes) {
  copy_to_device(host, device, bytes);
}

void HostDevice::update_momentum(const ops::MomentumElement& element,
                                 const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) {
  if (!ops::update_momentum(element, arrays, numel, kernels_)) ring(alarm);
}

void HostDevice::apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays,
                              int64_t numel) {
  ops::apply_update(element, arrays, numel, kernels_);
}

void HostDevice::adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
                       int64_t numel) {
  ops::adamw(element, arrays, numel, kernels_);
}

void HostDevice::encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                             Alarm alarm) {
  if (!ops::encode_wire(values, wire, numel, kernels_)) ring(alarm);
}

void HostDevice::decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) {
  ops::decode_wire(wire, values, numel, kernels_);
}

void HostDevice::orthogonalize(const ops::NewtonSchulz& newton_schulz,
                               std::span<float* const> matrices, float* scratch, int lanes) {
  newton_schulz.run(matrices, scratch, lanes);
}

void HostDevice::set_word(uint64_t* at, uint64_t value) { std::memcpy(at, &value, sizeof value); }

void HostDevice::copy_word(uint64_t* to, const uint64_t* from) {
  std::memcpy(to, from, sizeof *to);
}

void HostDevice::read_word(uint64_t* host, const uint64_t* at) { copy_word(host, at); }

void HostDevice::ring(Alarm alarm) {
  uint64_t word;
  copy_word(&word, alarm.word);
  if (word == 0) set_word(alarm.word, alarm.code);
}

}  // namespace zeromuon::offload
