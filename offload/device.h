// The work that a step does on one kind of memory. Blocking: a call returns when its result is
// there.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>

#include "csrc/base/dtype.h"
#include "csrc/ops/elements.h"
#include "csrc/ops/newton_schulz/products.h"

namespace zeromuon::offload {

// Pointers are to this device's memory; ranges, dtypes and return values as in
// csrc/ops/elementwise.h.
// Thread: used by the thread that runs the step.
class Device {
 public:
  virtual ~Device() = default;

  virtual bool update_momentum(const ops::MomentumElement& element, const float* gradient,
                               float* momentum, void* wire, DType wire_dtype, int64_t numel) = 0;
  virtual void apply_update(const ops::ApplyElement& element, float* weight, const void* update,
                            DType update_dtype, int64_t numel) = 0;
  virtual void adamw(const ops::AdamWElement& element, float* weight, const float* gradient,
                     float* exp_avg, float* exp_avg_sq, int64_t numel) = 0;
  virtual bool encode_wire(const float* values, void* wire, DType wire_dtype, int64_t numel) = 0;
  virtual void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel) = 0;

  // A word in this device's memory.
  virtual void write_word(void* at, uint64_t word) = 0;
  virtual uint64_t read_word(const void* at) = 0;

  virtual ops::Products& products() = 0;
};

// Raises ValueError when this build cannot work on such memory.
std::unique_ptr<Device> make_device(c10::Device device);

}  // namespace zeromuon::offload
