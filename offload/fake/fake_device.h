// A device in this process whose memory the host may not touch.
#pragma once

#include <vector>

#include "offload/fake/fake_memory.h"
#include "offload/fake/fake_registrar.h"
#include "offload/host_device.h"

namespace zeromuon::offload {

// See Note [Fake memory]. Every operation checks its pointers (InternalError) and runs the
// host's kernels on what is behind them, so results have the bits of a HostDevice.
// Thread: as Device.
class FakeDevice final : public Device {
 public:
  // Raises ValueError when this CPU cannot run such kernels.
  // registrar: is told of every copy; null: nobody is.
  explicit FakeDevice(ops::CpuKernels kernels = ops::CpuKernels::kAuto,
                      std::shared_ptr<FakeRegistrar> registrar = nullptr)
      : host_(kernels), registrar_(std::move(registrar)) {}

  Memory allocate(int64_t bytes) override { return memory_->allocate(bytes); }

  void copy_to_device(void* device, const void* host, int64_t bytes) override {
    memory_->expect_host(host, bytes, {"copy_to_device", "source"});
    if (registrar_) registrar_->copied(host, bytes);
    host_.copy_to_device(memory_->backing(device, bytes, 1, {"copy_to_device", "destination"}),
                         host, bytes);
  }
  void copy_to_host(void* host, const void* device, int64_t bytes) override {
    memory_->expect_host(host, bytes, {"copy_to_host", "destination"});
    if (registrar_) registrar_->copied(host, bytes);
    host_.copy_to_host(host, memory_->backing(device, bytes, 1, {"copy_to_host", "source"}), bytes);
  }

  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, Alarm alarm) override {
    const Behind behind(*memory_, "update_momentum", numel);
    host_.update_momentum(
        element,
        {behind.typed(arrays.gradient, "gradient"), behind.typed(arrays.momentum, "momentum"),
         behind.typed(arrays.wire, "wire")},
        numel, behind.alarm(alarm));
  }
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays, int64_t numel,
                    Alarm alarm) override {
    const Behind behind(*memory_, "apply_update", numel);
    host_.apply_update(
        element,
        {behind.floats(arrays.weight, "weight"), behind.typed(arrays.update, "update"),
         behind.optional(arrays.low_precision, "low_precision")},
        numel, behind.alarm(alarm));
  }
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays, int64_t numel,
             Alarm alarm) override {
    const Behind behind(*memory_, "adamw", numel);
    host_.adamw(
        element,
        {behind.floats(arrays.weight, "weight"), behind.typed(arrays.gradient, "gradient"),
         behind.typed(arrays.exp_avg, "exp_avg"), behind.typed(arrays.exp_avg_sq, "exp_avg_sq"),
         behind.optional(arrays.low_precision, "low_precision")},
        numel, behind.alarm(alarm));
  }
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   Alarm alarm) override {
    const Behind behind(*memory_, "encode_wire", numel);
    host_.encode_wire(behind.floats(values, "values"), behind.typed(wire, "wire"), numel,
                      behind.alarm(alarm));
  }
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override {
    const Behind behind(*memory_, "decode_wire", numel);
    host_.decode_wire(behind.typed(wire, "wire"), behind.floats(values, "values"), numel);
  }

  // With the host's products.
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override {
    const ops::NewtonSchulzPlan& plan = newton_schulz.plan();
    const Behind matrix(*memory_, "orthogonalize", plan.rows * plan.cols);
    const Behind spare(*memory_, "orthogonalize", lanes * plan.scratch_numel);
    std::vector<float*> found;
    found.reserve(matrices.size());
    for (const float* at : matrices) found.push_back(matrix.floats(at, "matrix"));
    host_.orthogonalize(newton_schulz, found, spare.floats(scratch, "scratch"), lanes);
  }

  void set_word(uint64_t* at, uint64_t value) override {
    host_.set_word(Behind(*memory_, "set_word", 1).word(at, "destination"), value);
  }
  void read_word(uint64_t* host, const uint64_t* at) override {
    memory_->expect_host(host, sizeof *host, {"read_word", "destination"});
    host_.read_word(host, Behind(*memory_, "read_word", 1).word(at, "source"));
  }
  // Each word is found by itself: a buffer reaches over several only by accident.
  void spread_word(const Words& words) override {
    const Behind behind(*memory_, "spread_word", 1);
    for (const int64_t offset : words.offsets) {
      std::memmove(behind.word(words, offset), behind.word(words, words.offsets[0]),
                   sizeof(uint64_t));
    }
  }
  void read_words(uint64_t* host, const Words& words) override {
    const auto bytes = static_cast<int64_t>(words.offsets.size() * sizeof *host);
    memory_->expect_host(host, bytes, {"read_words", "destination"});
    const Behind behind(*memory_, "read_words", 1);
    for (const int64_t offset : words.offsets) {
      host_.read_word(host++, behind.word(words, offset));
    }
  }

  ops::Products& products() override { return host_.products(); }

  // The memory behind it: what travels is real.
  std::byte* for_collectives(std::byte* buffer) override {
    return memory_->backing(buffer, 0, 1, {"for_collectives", "buffer"});
  }

  // Raises InternalError when something wrote beside an allocation of this device.
  void check() const { memory_->check(); }

 private:
  // What the arrays of one operation stand for, each of `numel` elements.
  class Behind {
   public:
    Behind(const FakeMemory& memory, const char* operation, int64_t numel)
        : memory_(memory), operation_(operation), numel_(numel) {}

    float* floats(const float* at, const char* what) const {
      return reinterpret_cast<float*>(find(at, DType::kFloat32, what));
    }
    ops::Typed typed(const ops::Typed& array, const char* what) const {
      return {find(array.data, array.dtype, what), array.dtype};
    }
    ops::ConstTyped typed(const ops::ConstTyped& array, const char* what) const {
      return {find(array.data, array.dtype, what), array.dtype};
    }
    // An array that may be missing.
    ops::Typed optional(const ops::Typed& array, const char* what) const {
      return array.data == nullptr ? array : typed(array, what);
    }
    Alarm alarm(const Alarm& alarm) const { return {word(alarm.word, "alarm"), alarm.code}; }
    uint64_t* word(const Words& words, int64_t offset) const {
      return word(reinterpret_cast<const uint64_t*>(words.buffer + offset), "word");
    }
    uint64_t* word(const uint64_t* at, const char* what) const {
      return reinterpret_cast<uint64_t*>(
          memory_.backing(at, sizeof *at, alignof(uint64_t), {operation_, what}));
    }

   private:
    std::byte* find(const void* at, DType dtype, const char* what) const {
      return memory_.backing(at, numel_ * size_of(dtype), size_of(dtype), {operation_, what});
    }

    const FakeMemory& memory_;
    const char* operation_;
    int64_t numel_;
  };

  HostDevice host_;
  const std::shared_ptr<FakeRegistrar> registrar_;
  std::shared_ptr<FakeMemory> memory_ = std::make_shared<FakeMemory>();
};

}  // namespace zeromuon::offload
