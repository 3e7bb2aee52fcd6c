#include "csrc/ops/newton_schulz/scratch.h"

#include <algorithm>

#include "csrc/ops/newton_schulz/float16_ops.h"

namespace zeromuon::ops {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kWorkspaceAlignment = 256;

class Layout {
 public:
  explicit Layout(float* memory) : memory_(reinterpret_cast<std::byte*>(memory)) {}

  template <typename T>
  T* take(bool wanted, int64_t numel) {
    if (!wanted) return nullptr;
    T* place = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (numel * static_cast<int64_t>(sizeof(T)) + kLineBytes - 1) / kLineBytes * kLineBytes;
    return place;
  }

  std::byte* take_workspace() {
    std::byte* const place = take<std::byte>(true, kWorkspaceBytes + kWorkspaceAlignment);
    const auto beyond = reinterpret_cast<uintptr_t>(place) % kWorkspaceAlignment;
    return beyond == 0 ? place : place + (kWorkspaceAlignment - beyond);
  }

  int64_t numel() const { return bytes_ / static_cast<int64_t>(sizeof(float)); }

 private:
  std::byte* memory_;
  int64_t bytes_ = 0;
};

}  // namespace

Float16Scratch lay_out_float16_scratch(const NewtonSchulzPlan& plan, float* memory) {
  Layout layout(memory);
  Float16Scratch out{};
  const int64_t m = plan.short_side();
  const int64_t matrix = plan.batch * plan.rows * tensor_row_stride(plan.cols);
  const bool long_segments = *std::max_element(plan.segments.begin(), plan.segments.end()) > 1;
  const TriangleBlocks& blocks = plan.square.blocks;
  out.x = layout.take<Float16>(true, matrix);
  out.other = layout.take<Float16>(plan.segments.size() > 1, matrix);
  for (int i = 0; i < 4; ++i) {
    out.squares[i] =
        layout.take<Float16>(i < 2 || long_segments, plan.batch * m * tensor_row_stride(m));
  }
  out.norm_parts = layout.take<double>(true, plan.batch * kNormParts);
  out.pointers = layout.take<void*>(blocks.count > 1, 3 * plan.batch * blocks.numel());
  out.workspace = layout.take_workspace();
  out.numel = layout.numel();
  return out;
}

NewtonSchulzScratch lay_out_scratch(const NewtonSchulzPlan& plan, float* memory) {
  Layout layout(memory);
  NewtonSchulzScratch out{};
  const int64_t m = plan.short_side(), n = plan.long_side();
  const int64_t matrix = m * row_stride(n, plan), square = m * row_stride(m, plan);
  const bool rounds = plan.dtype != DType::kFloat32;
  const bool tensors = plan.apply.backend == ProductBackend::kTensors;
  // Segments after the first read what the one before wrote, from rows that are well apart.
  const bool pair = tensors || (plan.segments.size() > 1 && row_stride(n, plan) != n);
  const bool long_segments = *std::max_element(plan.segments.begin(), plan.segments.end()) > 1;
  out.x = layout.take<float>(true, plan.batch * matrix);
  out.other = layout.take<float>(pair, plan.batch * matrix);
  out.x_rounded = layout.take<BFloat16>(rounds, plan.batch * matrix);
  out.other_rounded =
      layout.take<BFloat16>(rounds && plan.segments.size() > 1, plan.batch * matrix);
  for (int i = 0; i < 4; ++i) {
    const bool wanted = i < 2 || long_segments;
    out.squares[i] = layout.take<float>(wanted, plan.batch * square);
    out.squares_rounded[i] = layout.take<BFloat16>(wanted && rounds, plan.batch * square);
  }
  out.partial_sums = layout.take<double>(!tensors, (m * n + kNormChunk - 1) / kNormChunk);
  out.row_scales = layout.take<float>(plan.coefficients.scale_rows && !tensors, m);
  out.numel = layout.numel();
  return out;
}

}  // namespace zeromuon::ops
