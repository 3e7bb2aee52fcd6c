// The bodies of elements.h in plain loops.
#include "csrc/ops/kernel_table.h"

namespace zeromuon::ops {
namespace {

struct Flag {
  uint32_t* word;
  void raise() const { *word = 1; }
};

template <typename Body>
void for_each_element(int64_t begin, int64_t end, const Body& body) {
  for (int64_t i = begin; i < end; ++i) body(i);
}

uint32_t adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t begin, int64_t end) {
  uint32_t bad = 0;
  with_types(arrays, 0, [&](auto*... at) {
    for_each_element(begin, end, AdamWBody{element, at..., Flag{&bad}});
  });
  return bad;
}

uint32_t momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t begin,
                  int64_t end) {
  uint32_t bad = 0;
  with_types(arrays, 0, [&](auto*... at) {
    for_each_element(begin, end, MomentumBody{element, at..., Flag{&bad}});
  });
  return bad;
}

uint32_t apply(const ApplyElement& element, const ApplyArrays& arrays, int64_t begin, int64_t end) {
  uint32_t bad = 0;
  with_types(arrays, 0, [&](auto*... at) {
    for_each_element(begin, end, ApplyBody{element, at..., Flag{&bad}});
  });
  return bad;
}

uint32_t encode_values(const float* values, const Typed& out, int64_t begin, int64_t end) {
  uint32_t bad = 0;
  with_any_type(out, 0, [&](auto* to) {
    for_each_element(begin, end, EncodeBody{values, to, Flag{&bad}});
  });
  return bad;
}

void decode_values(const ConstTyped& in, float* values, int64_t begin, int64_t end) {
  with_any_type(in, 0, [&](auto* from) { for_each_element(begin, end, DecodeBody{from, values}); });
}

void copy(float* dst, const float* a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) dst[i] = a[i];
}

void triad(float* dst, const float* a, const float* b, float scalar, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) dst[i] = a[i] + scalar * b[i];
}

constexpr KernelTable kTable = {adamw, momentum, apply, encode_values, decode_values, copy, triad};

}  // namespace

const KernelTable& reference_kernels() { return kTable; }

}  // namespace zeromuon::ops
