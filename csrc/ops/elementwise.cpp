#include "csrc/ops/elementwise.h"

#include <algorithm>
#include <type_traits>

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

// Calls body with a pointer of the type that `dtype` names.
template <typename Void, typename Body>
auto with_type(Void* data, DType dtype, Body body) {
  constexpr bool kConst = std::is_const_v<Void>;
  using F32 = std::conditional_t<kConst, const float, float>;
  using BF16 = std::conditional_t<kConst, const BFloat16, BFloat16>;
  return dtype == DType::kFloat32 ? body(static_cast<F32*>(data)) : body(static_cast<BF16*>(data));
}

}  // namespace

bool update_momentum(const MomentumElement& element, const float* gradient, float* momentum,
                     void* wire, DType wire_dtype, int64_t numel) {
  return with_type(wire, wire_dtype, [&](auto* out) {
    return for_chunks(numel, [=](int64_t begin, int64_t end) {
             uint32_t bad = 0;
             for (int64_t i = begin; i < end; ++i) {
               const float mixed = element(gradient[i], momentum[i]);
               bad |= is_non_finite(mixed) ? 1u : 0u;
               encode(mixed, out[i]);
             }
             return bad;
           }) == 0;
  });
}

void apply_update(const ApplyElement& element, float* weight, const void* update,
                  DType update_dtype, int64_t numel) {
  with_type(update, update_dtype, [&](const auto* in) {
    return for_chunks(numel, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) element(weight[i], decode(in[i]));
      return 0u;
    });
  });
}

void adamw(const AdamWElement& element, float* weight, const float* gradient, float* exp_avg,
           float* exp_avg_sq, int64_t numel) {
  for_chunks(numel, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      element(weight[i], gradient[i], exp_avg[i], exp_avg_sq[i]);
    }
    return 0u;
  });
}

bool encode_wire(const float* values, void* wire, DType wire_dtype, int64_t numel) {
  return with_type(wire, wire_dtype, [&](auto* out) {
    return for_chunks(numel, [=](int64_t begin, int64_t end) {
             uint32_t bad = 0;
             for (int64_t i = begin; i < end; ++i) {
               bad |= is_non_finite(values[i]) ? 1u : 0u;
               encode(values[i], out[i]);
             }
             return bad;
           }) == 0;
  });
}

void decode_wire(const void* wire, DType wire_dtype, float* values, int64_t numel) {
  with_type(wire, wire_dtype, [&](const auto* in) {
    return for_chunks(numel, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] = decode(in[i]);
      return 0u;
    });
  });
}

}  // namespace zeromuon::ops
