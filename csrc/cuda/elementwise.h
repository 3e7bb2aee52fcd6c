// The element-wise kernels of csrc/ops/elementwise.h on CUDA memory, with the same arithmetic
// (csrc/ops/elements.h), on the default stream. Each call waits for its result.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"
#include "csrc/ops/elements.h"

namespace zeromuon::cuda {

// Owner of one word of device memory that kernels raise when they meet a non-finite value.
class DeviceFlag {
 public:
  DeviceFlag();
  ~DeviceFlag();
  DeviceFlag(const DeviceFlag&) = delete;
  DeviceFlag& operator=(const DeviceFlag&) = delete;

  unsigned* get() const { return flag_; }
  void lower();
  bool raised() const;  // waits for the kernels before it

 private:
  unsigned* flag_ = nullptr;
};

bool update_momentum(DeviceFlag& flag, const ops::MomentumElement& element, const float* gradient,
                     float* momentum, void* wire, DType wire_dtype, int64_t numel);
void apply_update(const ops::ApplyElement& element, float* weight, const void* update,
                  DType update_dtype, int64_t numel);
void adamw(const ops::AdamWElement& element, float* weight, const float* gradient, float* exp_avg,
           float* exp_avg_sq, int64_t numel);
bool encode_wire(DeviceFlag& flag, const float* values, void* wire, DType wire_dtype,
                 int64_t numel);
void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel);

void write_word(void* at, uint64_t word);
uint64_t read_word(const void* at);

}  // namespace zeromuon::cuda
