// The CPU and its memory.
#pragma once

#include "offload/device.h"

namespace zeromuon::offload {

// Blocking: an effect is there when the call returns.
// Thread: as Device. Each call opens its own OpenMP team, so one lane should call the large ones.
class HostDevice final : public Device {
 public:
  // Raises ValueError when this CPU cannot run such kernels.
  explicit HostDevice(ops::CpuKernels kernels = ops::CpuKernels::kAuto);

  Memory allocate(int64_t bytes) override;

  void copy_to_device(void* device, const void* host, int64_t bytes) override;
  void copy_to_host(void* host, const void* device, int64_t bytes) override;

  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, Alarm alarm) override;
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays,
                    int64_t numel) override;
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
             int64_t numel) override;
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   Alarm alarm) override;
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override;

  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override;

  // Words may stand at any address.
  void set_word(uint64_t* at, uint64_t value) override;
  void copy_word(uint64_t* to, const uint64_t* from) override;
  void read_word(uint64_t* host, const uint64_t* at) override;

  ops::Products& products() override { return *products_; }

 private:
  void ring(Alarm alarm);

  const ops::CpuKernels kernels_;
  const std::unique_ptr<ops::Products> products_;
};

}  // namespace zeromuon::offload
