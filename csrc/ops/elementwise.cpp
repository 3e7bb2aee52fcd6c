#include "csrc/ops/elementwise.h"

#include <algorithm>

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

// Calls body(begin, end) for every chunk of [0, numel) and ORs what it returns.
template <typename Body>
uint32_t for_chunks(int64_t numel, Body body) {
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  uint32_t flags = 0;
#pragma omp parallel for schedule(static) reduction(| : flags) if (numel > kSerialNumel)
  for (int64_t c = 0; c < chunks; ++c) {
    flags |= body(c * kChunk, std::min(numel, (c + 1) * kChunk));
  }
  return flags;
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
  const auto run = table_of(chosen).momentum;
  return for_chunks(numel, [&](int64_t begin, int64_t end) {
           return run(element, arrays, begin, end);
         }) == 0;
}

void apply_update(const ApplyElement& element, const ApplyArrays& arrays, int64_t numel,
                  CpuKernels kernels) {
  check(arrays);
  const auto run = table_of(resolve(kernels)).apply;
  for_chunks(numel, [&](int64_t begin, int64_t end) {
    run(element, arrays, begin, end);
    return 0u;
  });
}

void adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t numel,
           CpuKernels kernels) {
  check(arrays);
  const CpuKernels chosen = resolve(kernels);
#ifdef ZEROMUON_WITH_ONEDNN
  if (chosen == CpuKernels::kOneDnn) return onednn::adamw(element, arrays, numel, table_of(chosen));
#endif
  const auto run = table_of(chosen).adamw;
  for_chunks(numel, [&](int64_t begin, int64_t end) {
    run(element, arrays, begin, end);
    return 0u;
  });
}

bool encode_values(const float* values, const Typed& out, int64_t numel, CpuKernels kernels) {
  const auto run = table_of(resolve(kernels)).encode;
  return for_chunks(numel,
                    [&](int64_t begin, int64_t end) { return run(values, out, begin, end); }) == 0;
}

void decode_values(const ConstTyped& in, float* values, int64_t numel, CpuKernels kernels) {
  const auto run = table_of(resolve(kernels)).decode;
  for_chunks(numel, [&](int64_t begin, int64_t end) {
    run(in, values, begin, end);
    return 0u;
  });
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
  const auto run = table_of(CpuKernels::kAuto).copy;
  for_chunks(numel, [&](int64_t begin, int64_t end) {
    run(dst, a, begin, end);
    return 0u;
  });
}

void stream_triad(float* dst, const float* a, const float* b, float scalar, int64_t numel) {
  const auto run = table_of(CpuKernels::kAuto).triad;
  for_chunks(numel, [&](int64_t begin, int64_t end) {
    run(dst, a, b, scalar, begin, end);
    return 0u;
  });
}

}  // namespace zeromuon::ops
