#include "csrc/ops/onednn/matmul.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <initializer_list>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::ops::onednn {
namespace {

struct Hash {
  size_t operator()(const MatmulShape& s) const {
    size_t hash = static_cast<size_t>(s.dtype) * 4 + s.a_transposed * 2 + s.b_transposed;
    for (const int64_t v : {s.m, s.n, s.k, s.a_stride, s.b_stride, s.c_stride}) {
      hash = hash * 0x100000001b3u + static_cast<size_t>(v);
    }
    return hash;
  }
};

struct Matmul {
  dnnl::memory::desc a, b, c, scratchpad;
  dnnl::matmul primitive;
};

dnnl::memory::desc describe(int64_t rows, int64_t cols, DType dtype, int64_t stride,
                            bool transposed) {
  using dnnl::memory;
  const auto type = dtype == DType::kFloat32 ? memory::data_type::f32 : memory::data_type::bf16;
  const memory::dims strides = transposed ? memory::dims{1, stride} : memory::dims{stride, 1};
  return {memory::dims{rows, cols}, type, strides};
}

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const MatmulShape& s) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto a = describe(s.m, s.k, s.dtype, s.a_stride, s.a_transposed);
  const auto b = describe(s.k, s.n, s.dtype, s.b_stride, s.b_transposed);
  const auto c = describe(s.m, s.n, DType::kFloat32, s.c_stride, false);
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, c), attributes, engine};
#endif
}

// Scratch of this thread; grows to what is asked for, then stays.
void* scratch(size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { ::operator delete(data, kAlignment); }
  };
  thread_local Buffer buffer;
  if (bytes > buffer.bytes) {
    ::operator delete(std::exchange(buffer.data, nullptr), kAlignment);
    buffer.data = ::operator new(bytes, kAlignment);
    buffer.bytes = bytes;
  }
  return buffer.data;
}

// For the life of the object, signals to this thread wait, but for those of its own faults.
//
// oneDNN lets the stack pointer of its fp32 kernels point at their workspace on the heap (2.6.3 to
// 3.11.1 at least; its issue 4845): the frame of a signal handler, such as Python's for Ctrl-C,
// overwrites what lies below it.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t held;
    sigfillset(&held);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
      sigdelset(&held, fault);
    }
    pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_;
};

// Takes effect only before oneDNN makes its first primitive.
CpuIsa limit_isa() {
  using dnnl::cpu_isa;
  const CpuIsa ours = max_cpu_isa();
  if (std::getenv("ZEROMUON_MAX_CPU_ISA") != nullptr) {
    const cpu_isa limits[] = {cpu_isa::sse41, cpu_isa::avx2, cpu_isa::avx512_core,
                              cpu_isa::avx512_core_bf16, cpu_isa::avx512_core_amx};
    dnnl::set_max_cpu_isa(limits[static_cast<int>(ours)]);
  }
  const auto effective = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto has = [&](cpu_isa isa) {
    return (effective & static_cast<unsigned>(isa)) == static_cast<unsigned>(isa);
  };
  CpuIsa theirs = CpuIsa::kGeneric;
  if (has(cpu_isa::avx2)) theirs = CpuIsa::kAvx2;
  if (has(cpu_isa::avx512_core)) theirs = CpuIsa::kAvx512;
  if (has(cpu_isa::avx512_core_bf16)) theirs = CpuIsa::kAvx512Bf16;
  if (has(cpu_isa::avx512_core_amx)) theirs = CpuIsa::kAmxBf16;
  return ours < theirs ? ours : theirs;
}

}  // namespace

struct Matmuls::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::shared_mutex mutex;  // guards primitives; what it holds is never moved or removed
  std::unordered_map<MatmulShape, Matmul, Hash> primitives;
  // The most that any of them asks for: a thread takes it at its first product, whichever that is.
  std::atomic<size_t> scratch_bytes = 0;

  const Matmul& find(const MatmulShape& shape) {
    {
      const std::shared_lock lock(mutex);
      const auto found = primitives.find(shape);
      if (found != primitives.end()) return found->second;
    }
    const auto made = describe(engine, shape);
    Matmul matmul{made.src_desc(), made.weights_desc(), made.dst_desc(), made.scratchpad_desc(),
                  dnnl::matmul(made)};
    const std::unique_lock lock(mutex);
    scratch_bytes = std::max(scratch_bytes.load(), matmul.scratchpad.get_size());
    return primitives.emplace(shape, std::move(matmul)).first->second;
  }
};

Matmuls::Matmuls() {
  max_isa();
  state_ = std::make_unique<State>();
}
Matmuls::~Matmuls() = default;

void Matmuls::run(const MatmulShape& shape, const void* a, const void* b, float* c) {
  try {
    const Matmul& matmul = state_->find(shape);
    const dnnl::engine& engine = state_->engine;
    dnnl::stream stream(engine);
    const SignalsHeld held;
    matmul.primitive.execute(
        stream,
        {{DNNL_ARG_SRC, {matmul.a, engine, const_cast<void*>(a)}},
         {DNNL_ARG_WEIGHTS, {matmul.b, engine, const_cast<void*>(b)}},
         {DNNL_ARG_DST, {matmul.c, engine, c}},
         {DNNL_ARG_SCRATCHPAD, {matmul.scratchpad, engine, scratch(state_->scratch_bytes)}}});
    stream.wait();
  } catch (const dnnl::error& error) {
    throw std::runtime_error(concat("oneDNN ", version(), ": ", name_of(shape.dtype), " product ",
                                    shape.m, "x", shape.k, " by ", shape.k, "x", shape.n, ": ",
                                    error.what()));
  }
}

std::string version() {
  const dnnl_version_t* v = dnnl_version();
  return concat(v->major, ".", v->minor, ".", v->patch);
}

CpuIsa max_isa() {
  static const CpuIsa isa = limit_isa();
  return isa;
}

}  // namespace zeromuon::ops::onednn
