#include "csrc/ops/onednn/elementwise.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>

#include "csrc/base/check.h"
#include "csrc/base/parallel.h"
#include "csrc/ops/onednn/matmul.h"

namespace zeromuon::ops::onednn {
namespace {

using dnnl::algorithm;
using dnnl::memory;

// Six arrays of it are 384 KiB.
constexpr int64_t kChunk = 16384;

dnnl::engine& engine() {
  max_isa();  // before the first primitive
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

memory::desc vector_of(int64_t numel) {
  return {{numel}, memory::data_type::f32, memory::format_tag::a};
}

dnnl::primitive binary(algorithm kind, int64_t right_numel) {
  const memory::desc left = vector_of(kChunk), right = vector_of(right_numel);
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::binary(dnnl::binary::primitive_desc(engine(), kind, left, right, left));
#else
  return dnnl::binary(
      dnnl::binary::primitive_desc(dnnl::binary::desc(kind, left, right, left), engine()));
#endif
}

dnnl::primitive square_root() {
  using dnnl::eltwise_forward;
  constexpr auto kInference = dnnl::prop_kind::forward_inference;
  const memory::desc chunk = vector_of(kChunk);
#if DNNL_VERSION_MAJOR >= 3
  return eltwise_forward(eltwise_forward::primitive_desc(
      engine(), kInference, algorithm::eltwise_sqrt, chunk, chunk, 0.0f, 0.0f));
#else
  return eltwise_forward(eltwise_forward::primitive_desc(
      eltwise_forward::desc(kInference, algorithm::eltwise_sqrt, chunk, 0.0f, 0.0f), engine()));
#endif
}

// Made once and shared: executing them changes nothing in them.
struct Primitives {
  dnnl::primitive add = binary(algorithm::binary_add, kChunk);
  dnnl::primitive sub = binary(algorithm::binary_sub, kChunk);
  dnnl::primitive mul = binary(algorithm::binary_mul, kChunk);
  dnnl::primitive div = binary(algorithm::binary_div, kChunk);
  dnnl::primitive add_scalar = binary(algorithm::binary_add, 1);
  dnnl::primitive mul_scalar = binary(algorithm::binary_mul, 1);
  dnnl::primitive div_scalar = binary(algorithm::binary_div, 1);
  dnnl::primitive root = square_root();
};

const Primitives& primitives() {
  static const Primitives all;
  return all;
}

// Runs primitives on chunks.
// Thread: one per thread. Memory objects only carry pointers here, so three serve all calls.
class Worker {
 public:
  // dst = a <op> b over a chunk; dst may be a or b.
  void add(float* dst, float* a, float* b) { run(primitives().add, dst, a, b, right_); }
  void sub(float* dst, float* a, float* b) { run(primitives().sub, dst, a, b, right_); }
  void mul(float* dst, float* a, float* b) { run(primitives().mul, dst, a, b, right_); }
  void div(float* dst, float* a, float* b) { run(primitives().div, dst, a, b, right_); }
  void add(float* dst, float* a, float b) { run(primitives().add_scalar, dst, a, &b, scalar_); }
  void mul(float* dst, float* a, float b) { run(primitives().mul_scalar, dst, a, &b, scalar_); }
  void div(float* dst, float* a, float b) { run(primitives().div_scalar, dst, a, &b, scalar_); }
  void root(float* dst, float* a) {
    point(left_, a);
    point(dst_, dst);
    execute(primitives().root, {{DNNL_ARG_SRC, left_.get()}, {DNNL_ARG_DST, dst_.get()}});
  }

  // The chunk of an array; what is short of one is copied into a buffer of this worker.
  float* whole(int buffer, const float* at, int64_t count) {
    if (count == kChunk) return const_cast<float*>(at);
    std::memcpy(buffer_[buffer], at, count * sizeof(float));
    return buffer_[buffer];
  }
  float* scratch(int buffer) { return buffer_[buffer]; }

 private:
  template <int N>
  void execute(const dnnl::primitive& primitive, const dnnl_exec_arg_t (&arguments)[N]) {
    // Not primitive::execute, which allocates a map and a vector.
    dnnl::error::wrap_c_api(dnnl_primitive_execute(primitive.get(), stream_.get(), N, arguments),
                            "oneDNN: cannot execute a primitive");
  }
  void point(memory& at, float* data) { at.set_data_handle(data); }
  void run(const dnnl::primitive& primitive, float* dst, float* a, float* b, memory& right) {
    point(left_, a);
    point(right, b);
    point(dst_, dst);
    execute(
        primitive,
        {{DNNL_ARG_SRC_0, left_.get()}, {DNNL_ARG_SRC_1, right.get()}, {DNNL_ARG_DST, dst_.get()}});
  }

  dnnl::stream stream_{engine()};
  memory left_{vector_of(kChunk), engine(), nullptr};
  memory right_{vector_of(kChunk), engine(), nullptr};
  memory scalar_{vector_of(1), engine(), nullptr};
  memory dst_{vector_of(kChunk), engine(), nullptr};
  alignas(64) float buffer_[6][kChunk] = {};
};

Worker& worker() {
  thread_local const std::unique_ptr<Worker> mine = std::make_unique<Worker>();
  return *mine;
}

// Calls body(begin, count) for every chunk. Primitives run on one thread inside the team.
template <typename Body>
uint32_t for_chunks(int64_t numel, Body body) {
  primitives();
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  std::atomic<uint32_t> flags = 0;
  parallel_for(chunks, omp_get_max_threads(), [&](int64_t c, int) {
    flags |= body(c * kChunk, std::min(kChunk, numel - c * kChunk));
  });
  return flags;
}

void write_back(float* to, const float* from, int64_t count) {
  if (to != from) std::memcpy(to, from, count * sizeof(float));
}

// As MomentumElement. Returns the chunk of the tensor to orthogonalise.
float* advance(Worker& w, const MomentumElement& e, float* gradient, float* momentum) {
  float *scaled = w.scratch(2), *mixed = w.scratch(3);
  w.mul(scaled, gradient, e.gradient_scale);
  w.mul(scaled, scaled, e.gain);
  w.mul(momentum, momentum, e.beta);
  w.add(momentum, momentum, scaled);
  if (!e.nesterov) return momentum;
  w.mul(mixed, momentum, e.beta);
  w.add(mixed, mixed, scaled);
  return mixed;
}

// As AdamWElement.
void advance(Worker& w, const AdamWElement& e, float* weight, float* gradient, float* m, float* v) {
  float *g = w.scratch(4), *t = w.scratch(5);
  w.mul(g, gradient, e.gradient_scale);
  if (e.l2 != 0.0f) {
    w.mul(t, weight, e.l2);
    w.add(g, g, t);
  }
  w.mul(t, g, e.one_minus_beta1);
  w.mul(m, m, e.beta1);
  w.add(m, m, t);
  w.mul(t, g, g);
  w.mul(t, t, e.one_minus_beta2);
  w.mul(v, v, e.beta2);
  w.add(v, v, t);
  w.root(t, v);
  w.div(t, t, e.root_correction2);
  w.add(t, t, e.eps);
  w.div(t, m, t);
  w.mul(t, t, e.step_size);
  w.mul(weight, weight, e.decay);
  w.sub(weight, weight, t);
}

void expect_float32(const char* where, const char* what, DType dtype) {
  require(dtype == DType::kFloat32, where, ": cpu_kernels \"onednn\" expects ", what,
          " in float32, got ", name_of(dtype), "; use \"auto\"");
}

}  // namespace

bool update_momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t numel,
                     const KernelTable& casts) {
  expect_float32("momentum", "the gradient", arrays.gradient.dtype);
  expect_float32("momentum", "the momentum", arrays.momentum.dtype);
  const auto* gradient = static_cast<const float*>(arrays.gradient.data);
  auto* momentum = static_cast<float*>(arrays.momentum.data);
  return for_chunks(numel, [&](int64_t begin, int64_t count) {
           Worker& w = worker();
           float* m = w.whole(1, momentum + begin, count);
           const float* mixed = advance(w, element, w.whole(0, gradient + begin, count), m);
           write_back(momentum + begin, m, count);
           // A non-finite momentum is followed by a non-finite tensor.
           const Typed wire(
               static_cast<char*>(arrays.wire.data) + begin * size_of(arrays.wire.dtype),
               arrays.wire.dtype);
           return casts.encode(mixed, wire, 0, count);
         }) == 0;
}

bool adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t numel,
           const KernelTable& casts) {
  expect_float32("adamw", "the gradient", arrays.gradient.dtype);
  expect_float32("adamw", "exp_avg and exp_avg_sq", arrays.exp_avg.dtype);
  require(!element.cautious,
          "adamw: cpu_kernels \"onednn\" has no cautious weight decay; use \"auto\"");
  const auto* gradient = static_cast<const float*>(arrays.gradient.data);
  auto* exp_avg = static_cast<float*>(arrays.exp_avg.data);
  auto* exp_avg_sq = static_cast<float*>(arrays.exp_avg_sq.data);
  return for_chunks(numel, [&](int64_t begin, int64_t count) {
           Worker& w = worker();
           float* weight = w.whole(1, arrays.weight + begin, count);
           float *m = w.whole(2, exp_avg + begin, count),
                 *v = w.whole(3, exp_avg_sq + begin, count);
           advance(w, element, weight, w.whole(0, gradient + begin, count), m, v);
           write_back(arrays.weight + begin, weight, count);
           write_back(exp_avg + begin, m, count);
           write_back(exp_avg_sq + begin, v, count);
           // No primitive tests for that: a cast to float32 does.
           const uint32_t bad =
               casts.encode(v, w.scratch(5), 0, count) | casts.encode(m, w.scratch(5), 0, count);
           if (arrays.low_precision.data == nullptr) {
             return bad | casts.encode(weight, w.scratch(5), 0, count);
           }
           return bad | casts.encode(arrays.weight, arrays.low_precision, begin, begin + count);
         }) == 0;
}

}  // namespace zeromuon::ops::onednn
