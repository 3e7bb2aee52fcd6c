#include "csrc/ops/elementwise.h"

#include <algorithm>
#include <type_traits>

#include "csrc/base/check.h"
#ifdef ZEROMUON_WITH_ONEDNN
#include "csrc/ops/onednn/elementwise.h"
#endif

namespace zeromuon::ops {
namespace {

// A chunk is small enough for L2 and large enough to hide the cost of handing it out.
constexpr int64_t kChunk = 16384;
// Below this the team costs more than it saves.
constexpr int64_t kSerialNumel = 32768;

// Runs a kernel on every chunk of [0, numel). Returns whether none of them raised a flag.
template <typename Kernel, typename... Arguments>
bool run(Kernel kernel, int64_t numel, const Arguments&... arguments) {
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  uint32_t flags = 0;
#pragma omp parallel for schedule(static) reduction(| : flags) if (numel > kSerialNumel)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = c * kChunk, end = std::min(numel, begin + kChunk);
    if constexpr (std::is_void_v<decltype(kernel(arguments..., begin, end))>) {
      kernel(arguments..., begin, end);
    } else {
      flags |= kernel(arguments..., begin, end);
    }
  }
  return flags == 0;
}

}  // namespace

bool update_momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t numel,
                     CpuKernels kernels) {
  check(arrays);
  const CpuKernels chosen = resolve(kernels);
#ifdef ZEROMUON_WITH_ONEDNN
  if (chosen == CpuKernels::kOneDnn)
    return onednn::update_momentum(element, arrays, numel, table_of(chosen));
#endif
  return run(table_of(chosen).momentum, numel, element, arrays);
}

bool apply_update(const ApplyElement& element, const ApplyArrays& arrays, int64_t numel,
                  CpuKernels kernels) {
  check(arrays);
  return run(table_of(resolve(kernels)).apply, numel, element, arrays);
}

bool adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t numel,
           CpuKernels kernels) {
  check(arrays);
  const CpuKernels chosen = resolve(kernels);
#ifdef ZEROMUON_WITH_ONEDNN
  if (chosen == CpuKernels::kOneDnn) return onednn::adamw(element, arrays, numel, table_of(chosen));
#endif
  return run(table_of(chosen).adamw, numel, element, arrays);
}

bool encode_values(const float* values, const Typed& out, int64_t numel, CpuKernels kernels) {
  return run(table_of(resolve(kernels)).encode, numel, values, out);
}

void decode_values(const ConstTyped& in, float* values, int64_t numel, CpuKernels kernels) {
  run(table_of(resolve(kernels)).decode, numel, in, values);
}

bool encode_wire(const float* values, const Typed& wire, int64_t numel, CpuKernels kernels) {
  check_wire(wire);
  return encode_values(values, wire, numel, kernels);
}

void decode_wire(const ConstTyped& wire, float* values, int64_t numel, CpuKernels kernels) {
  check_wire(wire);
  decode_values(wire, values, numel, kernels);
}

void stream_copy(float* dst, const float* a, int64_t numel) {
  run(table_of(CpuKernels::kAuto).copy, numel, dst, a);
}

void stream_triad(float* dst, const float* a, const float* b, float scalar, int64_t numel) {
  run(table_of(CpuKernels::kAuto).triad, numel, dst, a, b, scalar);
}

}  // namespace zeromuon::ops
