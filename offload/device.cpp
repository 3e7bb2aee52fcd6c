#include "offload/device.h"

#include <cstring>

#include "csrc/base/check.h"
#include "csrc/ops/elementwise.h"
#ifdef ZEROMUON_WITH_CUDA
#include "csrc/cuda/elementwise.h"
#endif

namespace zeromuon::offload {
namespace {

class HostDevice final : public Device {
 public:
  bool update_momentum(const ops::MomentumElement& element, const float* gradient, float* momentum,
                       void* wire, DType wire_dtype, int64_t numel) override {
    return ops::update_momentum(element, gradient, momentum, wire, wire_dtype, numel);
  }
  void apply_update(const ops::ApplyElement& element, float* weight, const void* update,
                    DType update_dtype, int64_t numel) override {
    ops::apply_update(element, weight, update, update_dtype, numel);
  }
  void adamw(const ops::AdamWElement& element, float* weight, const float* gradient, float* exp_avg,
             float* exp_avg_sq, int64_t numel) override {
    ops::adamw(element, weight, gradient, exp_avg, exp_avg_sq, numel);
  }
  bool encode_wire(const float* values, void* wire, DType wire_dtype, int64_t numel) override {
    return ops::encode_wire(values, wire, wire_dtype, numel);
  }
  void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel) override {
    ops::decode_wire(wire, wire_dtype, values, numel);
  }
  void write_word(void* at, uint64_t word) override { std::memcpy(at, &word, sizeof word); }
  uint64_t read_word(const void* at) override {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
  }
  ops::Products& products() override { return ops::host_products(); }
};

#ifdef ZEROMUON_WITH_CUDA
class CudaDevice final : public Device {
 public:
  explicit CudaDevice(c10::Device device) : products_(device) {}

  bool update_momentum(const ops::MomentumElement& element, const float* gradient, float* momentum,
                       void* wire, DType wire_dtype, int64_t numel) override {
    return cuda::update_momentum(flag_, element, gradient, momentum, wire, wire_dtype, numel);
  }
  void apply_update(const ops::ApplyElement& element, float* weight, const void* update,
                    DType update_dtype, int64_t numel) override {
    cuda::apply_update(element, weight, update, update_dtype, numel);
  }
  void adamw(const ops::AdamWElement& element, float* weight, const float* gradient, float* exp_avg,
             float* exp_avg_sq, int64_t numel) override {
    cuda::adamw(element, weight, gradient, exp_avg, exp_avg_sq, numel);
  }
  bool encode_wire(const float* values, void* wire, DType wire_dtype, int64_t numel) override {
    return cuda::encode_wire(flag_, values, wire, wire_dtype, numel);
  }
  void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel) override {
    cuda::decode_wire(wire, wire_dtype, values, numel);
  }
  void write_word(void* at, uint64_t word) override { cuda::write_word(at, word); }
  uint64_t read_word(const void* at) override { return cuda::read_word(at); }
  ops::Products& products() override { return products_; }

 private:
  cuda::DeviceFlag flag_;
  ops::TensorProducts products_;
};
#endif

}  // namespace

std::unique_ptr<Device> make_device(c10::Device device) {
  if (device.is_cpu()) return std::make_unique<HostDevice>();
#ifdef ZEROMUON_WITH_CUDA
  if (device.is_cuda()) return std::make_unique<CudaDevice>(device);
#endif
  throw_value_error(concat("placement: this build of zeromuon cannot work on ", device.str(),
                           "; rebuild it where nvcc is (ZEROMUON_CUDA=ON), or offload to the CPU"));
}

}  // namespace zeromuon::offload
