// A device whose operations are done later, in the order of a stream.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "offload/device.h"
#include "offload/fake/fake_stream.h"

namespace zeromuon::offload {

// Gives the operations of a thread that has a FakeStream to that stream, with copies of what they
// are told, and those of another thread to the device at once. Runs are operations of their own.
// Thread: as Device.
class LateDevice final : public Device {
 public:
  explicit LateDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  Memory allocate(int64_t bytes) override { return device_->allocate(bytes); }

  void copy_to_device(void* device, const void* host, int64_t bytes) override {
    later([=](Device& d) { d.copy_to_device(device, host, bytes); });
  }
  void copy_to_host(void* host, const void* device, int64_t bytes) override {
    later([=](Device& d) { d.copy_to_host(host, device, bytes); });
  }

  void update_momentum(const ops::MomentumElement& element, const ops::MomentumArrays& arrays,
                       int64_t numel, Alarm alarm) override {
    later([=](Device& d) { d.update_momentum(element, arrays, numel, alarm); });
  }
  void apply_update(const ops::ApplyElement& element, const ops::ApplyArrays& arrays, int64_t numel,
                    Alarm alarm) override {
    later([=](Device& d) { d.apply_update(element, arrays, numel, alarm); });
  }
  void adamw(const ops::AdamWElement& element, const ops::AdamWArrays& arrays, int64_t numel,
             Alarm alarm) override {
    later([=](Device& d) { d.adamw(element, arrays, numel, alarm); });
  }
  void encode_wire(const float* values, const ops::Typed& wire, int64_t numel,
                   Alarm alarm) override {
    later([=](Device& d) { d.encode_wire(values, wire, numel, alarm); });
  }
  void decode_wire(const ops::ConstTyped& wire, float* values, int64_t numel) override {
    later([=](Device& d) { d.decode_wire(wire, values, numel); });
  }
  void orthogonalize(const ops::NewtonSchulz& newton_schulz, std::span<float* const> matrices,
                     float* scratch, int lanes) override {
    later([&newton_schulz, kept = std::vector(matrices.begin(), matrices.end()), scratch,
           lanes](Device& d) { d.orthogonalize(newton_schulz, kept, scratch, lanes); });
  }

  void set_word(uint64_t* at, uint64_t value) override {
    later([=](Device& d) { d.set_word(at, value); });
  }
  void read_word(uint64_t* host, const uint64_t* at) override {
    later([=](Device& d) { d.read_word(host, at); });
  }
  void spread_word(const Words& words) override {
    later([buffer = words.buffer, offsets = copy_of(words)](Device& d) {
      d.spread_word({buffer, offsets});
    });
  }
  void read_words(uint64_t* host, const Words& words) override {
    later([host, buffer = words.buffer, offsets = copy_of(words)](Device& d) {
      d.read_words(host, {buffer, offsets});
    });
  }

  ops::Products& products() override { return device_->products(); }

  // What travels is read by the host.
  std::byte* for_collectives(std::byte* buffer) override {
    wait_for_caller();
    return device_->for_collectives(buffer);
  }

  void wait_for_caller() override {
    if (FakeStream* const stream = FakeStream::current()) stream->mark()->wait();
  }

 private:
  static std::vector<int64_t> copy_of(const Words& words) {
    return {words.offsets.begin(), words.offsets.end()};
  }

  template <typename Operation>
  void later(Operation operation) {
    FakeStream* const stream = FakeStream::current();
    if (stream == nullptr) return operation(*device_);
    stream->put([device = device_, operation = std::move(operation)] { operation(*device); });
  }

  const std::shared_ptr<Device> device_;
};

}  // namespace zeromuon::offload
