// The Device of a GPU, and the pinning of host memory for its copies.
//
// Note [Streams are the lanes']
// An operation goes to the current libtorch stream of the thread that calls it, so that libtorch's
// products, c10d's collectives and our kernels keep one order. A lane makes a stream current in its
// thread once and waits for it after every task; memory passes from lane to lane only then.
#pragma once

#include <string>

#include "offload/device.h"
#include "offload/pinned_arena.h"

namespace zeromuon::offload {

// Thread: as Device; no state of its own changes after construction.
class CudaDevice final : public Device {
 public:
  // device: a GPU, with its index.
  explicit CudaDevice(c10::Device device);

  // From libtorch's caching allocator. Waits for the caller's stream: the allocator hands out
  // memory that work queued there may still use, and lanes have streams of their own.
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

  void set_word(uint64_t* at, uint64_t value) override;
  void copy_word(uint64_t* to, const uint64_t* from) override;
  void read_word(uint64_t* host, const uint64_t* at) override;

  ops::Products& products() override { return *products_; }
  void wait_for_caller() override;

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

  std::string register_memory(void* at, int64_t bytes) override;
  void unregister_memory(void* at) override;

 private:
  c10::Device device_;
};

}  // namespace zeromuon::offload
