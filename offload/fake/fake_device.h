// A device in this process whose memory the host may not touch.
#pragma once

#include "offload/fake/fake_memory.h"
#include "offload/host_device.h"

namespace zeromuon::offload {

// See Note [Fake memory]. Every operation checks its pointers (InternalError) and runs the
// host's kernels on what is behind them, so results have the bits of a HostDevice.
// Thread: as Device.
class FakeDevice final : public Device {
 public:
  // Raises ValueError when this CPU cannot run such kernels.
  explicit FakeDevice(ops::CpuKernels kernels = ops::CpuKernels::kAuto);

  Memory allocate(int64_t bytes) override { return memory_->allocate(bytes); }

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

  // With the host's products.
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override;

  void set_word(uint64_t* at, uint64_t value) override;
  void copy_word(uint64_t* to, const uint64_t* from) override;
  void read_word(uint64_t* host, const uint64_t* at) override;

  ops::Products& products() override { return host_.products(); }

  // The memory behind it: what travels is real.
  std::byte* for_collectives(std::byte* buffer) override;

  // Raises InternalError when something wrote beside an allocation of this device.
  void check() const { memory_->check(); }

 private:
  HostDevice host_;
  std::shared_ptr<FakeMemory> memory_ = std::make_shared<FakeMemory>();
};

}  // namespace zeromuon::offload
