// The CPU and its memory.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"
#include "offload/device.h"
#include "offload/slot_sizes.h"

namespace zeromuon::offload {

// Blocking: an effect is there when the call returns.
// Thread: as Device. Each call opens its own OpenMP team, so one lane should call the large ones.
class HostDevice final : public Device {
 public:
  // Raises ValueError when this CPU cannot run such kernels.
  explicit HostDevice(ops::CpuKernels kernels = ops::CpuKernels::kAuto)
      : kernels_(ops::resolve(kernels)), products_(ops::make_host_products()) {}

  Memory allocate(int64_t bytes) override {
    invariant(bytes >= 0, "host device: asked for ", bytes, " bytes");
    void* memory = std::aligned_alloc(kBlockAlignment, static_cast<size_t>(aligned(bytes + 1)));
    if (memory == nullptr) throw std::bad_alloc();
    return Memory(static_cast<std::byte*>(memory), [](std::byte* at) { std::free(at); });
  }

  void copy_to_device(void* device, const void* host, int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* host, const void* device, int64_t bytes) override {
    copy_to_device(host, device, bytes);
  }

  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, Alarm alarm) override {
    if (!ops::update_momentum(element, arrays, numel, kernels_)) ring(alarm);
  }
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays, int64_t numel,
                    Alarm alarm) override {
    if (!ops::apply_update(element, arrays, numel, kernels_)) ring(alarm);
  }
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays, int64_t numel,
             Alarm alarm) override {
    if (!ops::adamw(element, arrays, numel, kernels_)) ring(alarm);
  }
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   Alarm alarm) override {
    if (!ops::encode_wire(values, wire, numel, kernels_)) ring(alarm);
  }
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override {
    ops::decode_wire(wire, values, numel, kernels_);
  }
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override {
    newton_schulz.run(matrices, scratch, lanes);
  }

  // Words may stand at any address.
  void set_word(uint64_t* at, uint64_t value) override { std::memcpy(at, &value, sizeof value); }
  void read_word(uint64_t* host, const uint64_t* at) override {
    std::memcpy(host, at, sizeof *host);
  }
  void spread_word(const Words& words) override {
    for (const int64_t offset : words.offsets) {
      std::memmove(words.buffer + offset, words.buffer + words.offsets[0], sizeof(uint64_t));
    }
  }
  void read_words(uint64_t* host, const Words& words) override {
    for (const int64_t offset : words.offsets) {
      std::memcpy(host++, words.buffer + offset, sizeof *host);
    }
  }

  ops::Products& products() override { return *products_; }

 private:
  void ring(Alarm alarm) {
    uint64_t word;
    read_word(&word, alarm.word);
    if (word == 0) set_word(alarm.word, alarm.code);
  }

  const ops::CpuKernels kernels_;
  const std::unique_ptr<ops::Products> products_;
};

}  // namespace zeromuon::offload
