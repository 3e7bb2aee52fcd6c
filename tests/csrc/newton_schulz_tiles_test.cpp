// The products that Newton-Schulz is made of, and the tiles they are cut into.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "csrc/ops/newton_schulz/products.h"
#include "csrc/ops/newton_schulz/tile_ops.h"
#include "csrc/ops/newton_schulz/tuned_table.h"
#include "tests/csrc/newton_schulz_targets.h"

namespace zeromuon::ops {
namespace {

// X X^T, with the mirrored tiles, the added multiple and the diagonal.
TEST(Products, SymmetricProductsAreExactlySymmetricAndRight) {
  at::manual_seed(7);
  for (const int64_t m : {1, 7, 64, 129, 300}) {
    for (const ProductTarget& target : cpu_targets()) {
      const at::Tensor u = at::randn({m, 400}), addend = at::randn({m, m});
      const at::Tensor symmetric = (addend + addend.t()).contiguous();
      at::Tensor out = at::full({m, m}, std::nan(""));
      const Matrix x{const_cast<float*>(u.const_data_ptr<float>()), nullptr, m, 400, 400, 1};
      const ProductPlan plan =
          cut_product(find_tuned(target, DType::kFloat32, ProductKind::kGram, m), m, m, true);
      Product product{plan, {x, false, false}, {x, true, false}};
      product.alpha = 0.5f;
      product.beta = -2.0f;
      product.addend = symmetric.const_data_ptr<float>();
      product.addend_stride = m;
      product.diagonal = 3.0f;
      product.out = {out.mutable_data_ptr<float>(), nullptr, m, m, m, 1};
      product.symmetric = true;
      make_host_products()->multiply(product);
      EXPECT_TRUE(out.equal(out.t())) << m << " " << target.name();
      const at::Tensor expected =
          0.5 * u.matmul(u.t()) - 2.0 * symmetric + 3.0 * at::eye(m, at::kFloat);
      EXPECT_LE(relative(out, expected), 1e-5) << m << " " << target.name();
    }
  }
}

TEST(Products, TilesCoverATriangleOnceForEveryRowOfTheTable) {
  for (const TunedProduct& row : tuned_products()) {
    if (row.backend == ProductBackend::kTensors) continue;
    for (const int64_t m : {1, 31, 64, 200, 517, 1100}) {
      const bool symmetric = row.kind != ProductKind::kApply;
      const int64_t cols = symmetric ? m : 2 * m + 3;
      std::vector<int> covered(m * cols, 0);
      for (const Tile& tile : cut_product(row, m, cols, symmetric).tiles) {
        for (int64_t r = tile.row; r < tile.row + tile.rows; ++r) {
          for (int64_t c = tile.col; c < tile.col + tile.cols; ++c) ++covered[r * cols + c];
        }
      }
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t c = 0; c < (symmetric ? r + 1 : cols); ++c) {
          ASSERT_EQ(covered[r * cols + c], 1) << row.target << " " << m << ": " << r << " " << c;
        }
      }
    }
  }
}

#if defined(__x86_64__)
TEST(Products, TileOperationsGiveTheSameBitsOnEveryInstructionSet) {
  if (!cpu_can(CpuIsa::kAvx2)) GTEST_SKIP() << "avx2: this processor does not have it";
  at::manual_seed(11);
  for (const int64_t rows : {1, 8, 13, 64}) {
    for (const int64_t cols : {1, 8, 21, 64}) {
      const int64_t stride = 128;
      const at::Tensor product = at::randn({stride, stride}), addend = at::randn({stride, stride});
      product.flatten()[1] = std::nan("");
      const auto finish = [&](const TileOps& ops, bool diagonal) {
        at::Tensor out = product.clone(), rounded = at::zeros({stride, stride}, at::kBFloat16);
        auto* data = out.mutable_data_ptr<float>();
        auto* low = static_cast<BFloat16*>(rounded.data_ptr());
        const int64_t side = diagonal ? rows : cols, mirror = diagonal ? 0 : 64 * stride;
        ops.finish({rows, side, stride, data, addend.const_data_ptr<float>(), stride, low,
                    data + mirror, low + mirror, 0.7f, -1.3f, diagonal, 2.5f});
        return std::pair(out.view(at::kInt), rounded.view(at::kShort));
      };
      for (const bool diagonal : {false, true}) {
        const auto expected = finish(generic::tile_ops(), diagonal);
        const auto got = finish(avx2::tile_ops(), diagonal);
        EXPECT_TRUE(expected.first.equal(got.first)) << rows << "x" << cols << " " << diagonal;
        EXPECT_TRUE(expected.second.equal(got.second)) << rows << "x" << cols << " " << diagonal;
      }
      const auto others = [&](const TileOps& ops) {
        const auto* in = product.const_data_ptr<float>();
        at::Tensor moved = at::zeros({stride, stride}), scaled = at::zeros({stride});
        at::Tensor low = at::zeros({2, stride}, at::kBFloat16);
        auto* rounded = static_cast<BFloat16*>(low.data_ptr());
        ops.transpose(in, stride, moved.mutable_data_ptr<float>(), stride, rows, cols);
        ops.scale(in, 0.3, scaled.mutable_data_ptr<float>(), rounded, cols);
        ops.round(in, rounded + stride, cols);
        const double sum = ops.sum_of_squares(addend.const_data_ptr<float>(), rows * cols);
        return std::tuple(moved.view(at::kInt), scaled.view(at::kInt), low.view(at::kShort), sum);
      };
      const auto [moved, scaled, low, sum] = others(generic::tile_ops());
      const auto [moved2, scaled2, low2, sum2] = others(avx2::tile_ops());
      EXPECT_TRUE(moved.equal(moved2) && scaled.equal(scaled2) && low.equal(low2) && sum == sum2)
          << rows << "x" << cols;
      EXPECT_TRUE(
          moved.narrow(0, 0, cols)
              .narrow(1, 0, rows)
              .equal(
                  product.narrow(0, 0, rows).narrow(1, 0, cols).t().contiguous().view(at::kInt)));
    }
  }
}
#endif

}  // namespace
}  // namespace zeromuon::ops
