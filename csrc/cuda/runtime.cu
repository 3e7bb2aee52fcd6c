#include <nvtx3/nvToolsExt.h>

#include <stdexcept>

#include "csrc/base/check.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

__global__ void store(uint64_t* at, uint64_t value) { *at = value; }

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

void copy_word(StreamRef stream, uint64_t* to, const uint64_t* from) {
  copy(stream, to, from, sizeof *to, cudaMemcpyDeviceToDevice, "copy a word");
}

void read_word(StreamRef stream, uint64_t* host, const uint64_t* at) {
  copy(stream, host, at, sizeof *host, cudaMemcpyDeviceToHost, "read a word");
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
