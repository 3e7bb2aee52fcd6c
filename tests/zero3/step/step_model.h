// A small model, its flat shards, and the options that tests plan its steps with.
#pragma once

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>

#include <cmath>
#include <utility>
#include <vector>

#include "csrc/base/check.h"
#include "zero3/plan/step_plan.h"

namespace zeromuon::zero3 {

struct Shape {
  int64_t rows, cols;
};

constexpr double kLr = 0.02, kDecay = 0.1, kMomentum = 0.95;

// A model of whole tensors, and the flat shards that ZeRO-3 makes of them. Padding is NaN.
class Model {
 public:
  Model(std::vector<Shape> shapes, uint64_t seed) : shapes_(std::move(shapes)) {
    at::manual_seed(seed);
    for (const Shape& s : shapes_) weights.push_back(at::randn({s.rows, s.cols}));
  }

  SubGroupSpec spec(Role role, int world) const {
    SubGroupSpec group{role, {}};
    int64_t offset = 0;
    for (size_t i = 0; i < shapes_.size(); ++i) {
      const int64_t numel = shapes_[i].rows * shapes_[i].cols;
      const int64_t chunk = (numel + world - 1) / world;
      group.params.push_back(
          {{concat("w", i), numel, chunk, offset, shapes_[i].rows, shapes_[i].cols},
           i % 2 == 0,
           false,
           i < blocks.size() ? blocks[i] : std::vector<MatrixBlock>{}});
      offset += chunk;
    }
    return group;
  }

  static at::Tensor shard_of(const std::vector<at::Tensor>& whole, const ShardLayout& layout,
                             int rank) {
    at::Tensor shard = at::full({layout.shard_numel()}, std::nan(""));
    for (size_t p = 0; p < whole.size(); ++p) {
      const ShardRange real = layout.real_range(static_cast<int>(p), rank);
      if (real.numel == 0) continue;
      shard.narrow(0, real.offset, real.numel)
          .copy_(whole[p].reshape(-1).narrow(0, real.begin, real.numel));
    }
    return shard;
  }

  static void restore(std::vector<at::Tensor>& whole, const at::Tensor& shard,
                      const ShardLayout& layout, int rank) {
    for (size_t p = 0; p < whole.size(); ++p) {
      const ShardRange real = layout.real_range(static_cast<int>(p), rank);
      if (real.numel == 0) continue;
      whole[p]
          .view(-1)
          .narrow(0, real.begin, real.numel)
          .copy_(shard.narrow(0, real.offset, real.numel));
    }
  }

  std::vector<at::Tensor> gradients(int step) const {
    at::manual_seed(1000 + step);
    std::vector<at::Tensor> out;
    for (const Shape& s : shapes_) out.push_back(at::randn({s.rows, s.cols}));
    return out;
  }

  std::vector<at::Tensor> weights;
  std::vector<std::vector<MatrixBlock>> blocks;  // per parameter; empty: whole matrices

 private:
  std::vector<Shape> shapes_;
};

inline const std::vector<Shape> kShapes = {{12, 8}, {1, 2}, {30, 7}, {8, 40}, {5, 5}, {3, 1}};

inline PlanOptions options(int world, DType wire = DType::kFloat32,
                           int64_t bucket_bytes = 1 << 20) {
  PlanOptions o;
  o.world_size = world;
  o.newton_schulz.coefficients = ops::find_coefficient_set("jordan");
  o.newton_schulz.dtype = ops::NewtonSchulzDType::kFloat32;
  o.target = ops::this_cpu();
  o.lanes = 2;
  o.scale = Scale::kOriginal;
  o.wire_dtype = wire;
  o.bucket_bytes = bucket_bytes;
  return o;
}

}  // namespace zeromuon::zero3
