#include <nvtx3/nvToolsExt.h>

#include <stdexcept>

#include "csrc/base/check.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

__global__ void store(uint64_t* at, uint64_t value) { *at = value; }

constexpr int kThreads = 64;

// So many as a kernel is told of.
struct Offsets {
  int64_t at[kThreads];
  size_t count;
};

__global__ void spread(const uint64_t* first, std::byte* buffer, Offsets offsets) {
  if (threadIdx.x >= offsets.count) return;
  *reinterpret_cast<uint64_t*>(buffer + offsets.at[threadIdx.x]) = *first;
}

__global__ void gather(uint64_t* to, const std::byte* buffer, Offsets offsets) {
  if (threadIdx.x >= offsets.count) return;
  to[threadIdx.x] = *reinterpret_cast<const uint64_t*>(buffer + offsets.at[threadIdx.x]);
}

// body(at most `most` of the offsets, where they begin).
template <typename Body>
void for_parts(std::span<const int64_t> offsets, size_t most, const Body& body) {
  most = most < kThreads ? most : kThreads;
  for (size_t begin = 0; begin < offsets.size(); begin += most) {
    Offsets part{{}, offsets.size() - begin < most ? offsets.size() - begin : most};
    for (size_t i = 0; i < part.count; ++i) part.at[i] = offsets[begin + i];
    body(part, begin);
  }
}

void copy(StreamRef stream, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind,
          const char* what) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind,
                        static_cast<cudaStream_t>(stream.handle)),
        what);
}

}  // namespace

std::string describe(cudaError_t status) {
  return concat(cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(concat("CUDA: ", what, ": ", describe(status)));
}

Event::Event() {
  cudaEvent_t made;
  check(cudaEventCreateWithFlags(&made, cudaEventBlockingSync | cudaEventDisableTiming),
        "make an event");
  handle_ = made;
}

Event::~Event() {
  if (cudaEventDestroy(static_cast<cudaEvent_t>(handle_)) != cudaSuccess) cudaGetLastError();
}

void Event::record(StreamRef stream) {
  check(
      cudaEventRecord(static_cast<cudaEvent_t>(handle_), static_cast<cudaStream_t>(stream.handle)),
      "record an event");
}

void Event::wait() {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "wait for the stream");
}

bool Event::reached() {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(handle_));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // or the check after the next kernel would find it
    return false;
  }
  check(status, "ask for the stream");
  return true;
}

void Event::hold(StreamRef stream) {
  check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.handle),
                            static_cast<cudaEvent_t>(handle_)),
        "put a stream behind another");
}

void synchronize(StreamRef stream) {
  Event event;
  event.record(stream);
  event.wait();
}

void copy_to_device(StreamRef stream, void* device, const void* host, int64_t bytes) {
  copy(stream, device, host, bytes, cudaMemcpyHostToDevice, "copy to the device");
}

void copy_to_host(StreamRef stream, void* host, const void* device, int64_t bytes) {
  copy(stream, host, device, bytes, cudaMemcpyDeviceToHost, "copy to the host");
}

void set_word(StreamRef stream, uint64_t* at, uint64_t value) {
  store<<<1, 1, 0, static_cast<cudaStream_t>(stream.handle)>>>(at, value);
  check(cudaGetLastError(), "set a word");
}

void read_word(StreamRef stream, uint64_t* host, const uint64_t* at) {
  copy(stream, host, at, sizeof *host, cudaMemcpyDeviceToHost, "read a word");
}

void spread_word(StreamRef stream, std::byte* buffer, std::span<const int64_t> offsets) {
  const auto* const first = reinterpret_cast<const uint64_t*>(buffer + offsets[0]);
  for_parts(offsets.subspan(1), kThreads, [&](const Offsets& part, size_t) {
    spread<<<1, kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(first, buffer, part);
    check(cudaGetLastError(), "spread a word");
  });
}

void read_words(StreamRef stream, uint64_t* host, std::byte* buffer,
                std::span<const int64_t> offsets, int64_t room) {
  auto* const gathered = reinterpret_cast<uint64_t*>(buffer + offsets[0]) + 1;
  const auto most = static_cast<size_t>(room) / sizeof(uint64_t) - 1;
  for_parts(offsets, most, [&](const Offsets& part, size_t begin) {
    gather<<<1, kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(gathered, buffer, part);
    check(cudaGetLastError(), "gather words");
    copy(stream, host + begin, gathered, static_cast<int64_t>(part.count * sizeof *host),
         cudaMemcpyDeviceToHost, "read words");
  });
}

std::string register_memory(void* memory, int64_t bytes) {
  const cudaError_t status =
      cudaHostRegister(memory, static_cast<size_t>(bytes), cudaHostRegisterPortable);
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // or the check after the next kernel would find this error
  return describe(status);
}

void unregister_memory(void* memory) noexcept {
  if (cudaHostUnregister(memory) != cudaSuccess) cudaGetLastError();
}

Range::Range(const char* name) { nvtxRangePushA(name); }
Range::~Range() { nvtxRangePop(); }

}  // namespace zeromuon::cuda
