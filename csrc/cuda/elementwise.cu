#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "csrc/cuda/elementwise.h"

namespace zeromuon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1 << 16;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

template <typename Body>
__global__ void for_each_element(int64_t numel, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel;
       i += stride) {
    body(i);
  }
}

template <typename Body>
void launch(const char* what, int64_t numel, Body body) {
  if (numel == 0) return;
  const int64_t blocks = (numel + kThreads - 1) / kThreads;
  const int grid = static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  for_each_element<<<grid, kThreads>>>(numel, body);
  check(cudaGetLastError(), what);
  check(cudaStreamSynchronize(nullptr), what);
}

template <typename Wire>
struct MomentumBody {
  ops::MomentumElement element;
  const float* gradient;
  float* momentum;
  Wire* wire;
  unsigned* flag;
  __device__ void operator()(int64_t i) const {
    const float mixed = element(gradient[i], momentum[i]);
    if (is_non_finite(mixed)) atomicOr(flag, 1u);
    encode(mixed, wire[i]);
  }
};

template <typename Wire>
struct ApplyBody {
  ops::ApplyElement element;
  float* weight;
  const Wire* update;
  __device__ void operator()(int64_t i) const { element(weight[i], decode(update[i])); }
};

struct AdamWBody {
  ops::AdamWElement element;
  float* weight;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  __device__ void operator()(int64_t i) const {
    element(weight[i], gradient[i], exp_avg[i], exp_avg_sq[i]);
  }
};

template <typename Wire>
struct EncodeBody {
  const float* values;
  Wire* wire;
  unsigned* flag;
  __device__ void operator()(int64_t i) const {
    if (is_non_finite(values[i])) atomicOr(flag, 1u);
    encode(values[i], wire[i]);
  }
};

template <typename Wire>
struct DecodeBody {
  const Wire* wire;
  float* values;
  __device__ void operator()(int64_t i) const { values[i] = decode(wire[i]); }
};

}  // namespace

DeviceFlag::DeviceFlag() { check(cudaMalloc(&flag_, sizeof *flag_), "allocate flag"); }
DeviceFlag::~DeviceFlag() { cudaFree(flag_); }
void DeviceFlag::lower() { check(cudaMemset(flag_, 0, sizeof *flag_), "lower flag"); }
bool DeviceFlag::raised() const {
  unsigned value = 0;
  check(cudaMemcpy(&value, flag_, sizeof value, cudaMemcpyDeviceToHost), "read flag");
  return value != 0;
}

bool update_momentum(DeviceFlag& flag, const ops::MomentumElement& element, const float* gradient,
                     float* momentum, void* wire, DType wire_dtype, int64_t numel) {
  flag.lower();
  if (wire_dtype == DType::kFloat32) {
    auto* out = static_cast<float*>(wire);
    launch("update_momentum", numel,
           MomentumBody<float>{element, gradient, momentum, out, flag.get()});
  } else {
    auto* out = static_cast<BFloat16*>(wire);
    launch("update_momentum", numel,
           MomentumBody<BFloat16>{element, gradient, momentum, out, flag.get()});
  }
  return !flag.raised();
}

void apply_update(const ops::ApplyElement& element, float* weight, const void* update,
                  DType update_dtype, int64_t numel) {
  if (update_dtype == DType::kFloat32) {
    launch("apply_update", numel,
           ApplyBody<float>{element, weight, static_cast<const float*>(update)});
  } else {
    launch("apply_update", numel,
           ApplyBody<BFloat16>{element, weight, static_cast<const BFloat16*>(update)});
  }
}

void adamw(const ops::AdamWElement& element, float* weight, const float* gradient, float* exp_avg,
           float* exp_avg_sq, int64_t numel) {
  launch("adamw", numel, AdamWBody{element, weight, gradient, exp_avg, exp_avg_sq});
}

bool encode_wire(DeviceFlag& flag, const float* values, void* wire, DType wire_dtype,
                 int64_t numel) {
  flag.lower();
  if (wire_dtype == DType::kFloat32) {
    launch("encode_wire", numel, EncodeBody<float>{values, static_cast<float*>(wire), flag.get()});
  } else {
    launch("encode_wire", numel,
           EncodeBody<BFloat16>{values, static_cast<BFloat16*>(wire), flag.get()});
  }
  return !flag.raised();
}

void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel) {
  if (wire_dtype == DType::kFloat32) {
    launch("decode_wire", numel, DecodeBody<float>{static_cast<const float*>(wire), values});
  } else {
    launch("decode_wire", numel, DecodeBody<BFloat16>{static_cast<const BFloat16*>(wire), values});
  }
}

void write_word(void* at, uint64_t word) {
  check(cudaMemcpy(at, &word, sizeof word, cudaMemcpyHostToDevice), "write word");
}

uint64_t read_word(const void* at) {
  uint64_t word = 0;
  check(cudaMemcpy(&word, at, sizeof word, cudaMemcpyDeviceToHost), "read word");
  return word;
}

}  // namespace zeromuon::cuda
