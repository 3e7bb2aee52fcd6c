// The work that a step does on one kind of memory.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <span>

#include "csrc/ops/arrays.h"
#include "csrc/ops/cpu_kernels.h"
#include "csrc/ops/elements.h"
#include "csrc/ops/newton_schulz/newton_schulz.h"

namespace zeromuon::offload {

using ops::Alarm;

// Memory that goes back to its device with the last copy of the pointer.
using Memory = std::shared_ptr<std::byte>;

// 8-byte words of a buffer, each at the beginning of a cache line (kBlockAlignment) of which the
// rest is nobody's.
struct Words {
  std::byte* buffer;
  std::span<const int64_t> offsets;  // in bytes
};

// Operations are called by the bodies of tasks, and their effects are there when the task is done:
// on a GPU they are put in the order of the lane's stream. Pointers are to this device's memory
// unless called `host`; ranges and dtypes as in csrc/ops/elementwise.h.
// Thread: bodies of different lanes call at the same time, on disjoint memory.
class Device {
 public:
  virtual ~Device() = default;

  // Aligned to kBlockAlignment. Raises MemoryError's C++ form (std::bad_alloc or c10::Error) when
  // there is none.
  virtual Memory allocate(int64_t bytes) = 0;

  virtual void copy_to_device(void* device, const void* host, int64_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, int64_t bytes) = 0;

  virtual void update_momentum(const ops::MomentumElement& element,
                               const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) = 0;
  virtual void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays,
                            int64_t numel, Alarm alarm) = 0;
  virtual void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
                     int64_t numel, Alarm alarm) = 0;
  virtual void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                           Alarm alarm) = 0;
  virtual void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) = 0;

  // The same on runs of the arrays, which do not overlap; of several that ring, the word tells one.
  // elements: of each run. at[] of casts: in the source, in the destination.
  virtual void update_momenta(const ops::MomentumElement& element,
                              const ops::MomentumArrays& arrays, std::span<const ops::Run> runs,
                              uint64_t* word) {
    for (const ops::Run& run : runs) {
      update_momentum(element, behind(arrays, run), run.length, Alarm{word, run.code});
    }
  }
  virtual void apply_updates(std::span<const ops::ApplyElement> elements,
                             const ops::ApplyArrays& arrays, std::span<const ops::Run> runs,
                             uint64_t* word) {
    for (size_t i = 0; i < runs.size(); ++i) {
      apply_update(elements[i], behind(arrays, runs[i]), runs[i].length, Alarm{word, runs[i].code});
    }
  }
  virtual void encode_runs(const float* values, const ops::Typed& wire,
                           std::span<const ops::Run> runs, uint64_t* word) {
    for (const ops::Run& run : runs) {
      encode_wire(values + run.at[0], behind(wire, run.at[1]), run.length, Alarm{word, run.code});
    }
  }
  virtual void decode_runs(const ops::ConstTyped& wire, float* values,
                           std::span<const ops::Run> runs) {
    for (const ops::Run& run : runs) {
      decode_wire(behind(wire, run.at[0]), values + run.at[1], run.length);
    }
  }

  // In place, as NewtonSchulz::run.
  virtual void orthogonalize(const ops::NewtonSchulz& newton_schulz,
                             std::span<float* const> matrices, float* scratch, int lanes) = 0;

  virtual void set_word(uint64_t* at, uint64_t value) = 0;
  virtual void read_word(uint64_t* host, const uint64_t* at) = 0;
  // The first word's value, to all others.
  virtual void spread_word(const Words& words) = 0;
  // host: one for each.
  virtual void read_words(uint64_t* host, const Words& words) = 0;

  // What NewtonSchulz objects for this device are made with.
  virtual ops::Products& products() = 0;

  // Where the collectives of this process find a buffer of this device.
  virtual std::byte* for_collectives(std::byte* buffer) { return buffer; }

  // Blocks until what the calling thread has queued on this device is done: gradients that the
  // host's own stream still computes.
  virtual void wait_for_caller() {}
};

}  // namespace zeromuon::offload
