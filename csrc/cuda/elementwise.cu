#include "csrc/cuda/elementwise.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1 << 16;

// The Flag of the bodies. They are host functions, too, but nothing runs them on the host here.
struct AlarmFlag {
  Alarm alarm;
  __host__ __device__ void raise() const {
#if defined(__CUDA_ARCH__)
    static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
    atomicCAS(reinterpret_cast<unsigned long long*>(alarm.word), 0ull, alarm.code);
#endif
  }
};

template <typename Body>
__global__ void for_each_element(int64_t numel, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel;
       i += stride) {
    body(i);
  }
}

template <typename Body>
void launch(StreamRef stream, const char* what, int64_t numel, Body body) {
  if (numel == 0) return;
  const int64_t blocks = (numel + kThreads - 1) / kThreads;
  const int grid = static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  for_each_element<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(numel, body);
  check(cudaGetLastError(), what);
}

}  // namespace

void update_momentum(StreamRef stream, const ops::MomentumElement& element,
                     const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](auto*... at) {
    launch(stream, "update_momentum", numel, ops::MomentumBody{element, at..., AlarmFlag{alarm}});
  });
}

void apply_update(StreamRef stream, const ops::ApplyElement& element,
                  const ops::ApplyArrays& arrays, int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](auto*... at) {
    launch(stream, "apply_update", numel, ops::ApplyBody{element, at..., AlarmFlag{alarm}});
  });
}

void adamw(StreamRef stream, const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
           int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](auto*... at) {
    launch(stream, "adamw", numel, ops::AdamWBody{element, at..., AlarmFlag{alarm}});
  });
}

void encode_wire(StreamRef stream, const float* values, const ops::Typed& wire, int64_t numel,
                 Alarm alarm) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* out) {
    launch(stream, "encode_wire", numel, ops::EncodeBody{values, out, AlarmFlag{alarm}});
  });
}

void decode_wire(StreamRef stream, const ops::ConstTyped& wire, float* values, int64_t numel) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* in) {
    launch(stream, "decode_wire", numel, ops::DecodeBody{in, values});
  });
}

}  // namespace zeromuon::cuda
