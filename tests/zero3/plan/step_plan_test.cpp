#include "zero3/plan/step_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <tuple>

#include "csrc/base/check.h"
#include "zero3/plan/bucket_route.h"

namespace zeromuon::zero3 {
namespace {

PlanOptions options(int world) {
  PlanOptions o;
  o.world_size = world;
  o.newton_schulz.coefficients = ops::find_coefficient_set("jordan");
  return o;
}

ParamSpec matrix(const std::string& name, int64_t rows, int64_t cols, int world, int64_t offset) {
  const int64_t numel = rows * cols;
  return {{name, numel, (numel + world - 1) / world, offset, rows, cols}, true, false, {}};
}

// Matrices one after the other in a Muon sub-group.
SubGroupSpec muon(int world, const std::vector<std::pair<int64_t, int64_t>>& shapes) {
  SubGroupSpec group{Role::kMuon, {}};
  int64_t offset = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    group.params.push_back(
        matrix(concat("w", i), shapes[i].first, shapes[i].second, world, offset));
    offset += group.params.back().shard.chunk;
  }
  return group;
}

const std::vector<std::pair<int64_t, int64_t>> kMatrices = {
    {8, 8}, {16, 4}, {1, 2}, {5, 7}, {8, 8}};

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

TEST(StepPlan, EveryMatrixHasOneOwnerAndOneBucket) {
  for (int world = 1; world <= 6; ++world) {
    const StepPlan plan = make_step_plan(options(world), {muon(world, kMatrices)});
    const SubGroupPlan& group = plan.sub_groups[0];
    ASSERT_EQ(group.blocks.size(), kMatrices.size());
    int next = 0;
    for (const Bucket& bucket : group.buckets) {
      EXPECT_EQ(bucket.begin, next);
      next = bucket.end;
    }
    EXPECT_EQ(next, static_cast<int>(kMatrices.size()));
    for (const PlannedBlock& block : group.blocks) {
      EXPECT_GE(block.owner, 0);
      EXPECT_LT(block.owner, world);
    }
  }
}

TEST(StepPlan, BucketsStayWithinTheirBytesUnlessAMatrixAloneIsLarger) {
  PlanOptions o = options(1);
  o.bucket_bytes = 4 * 8 * 8;
  const StepPlan plan = make_step_plan(o, {muon(1, {{8, 8}, {4, 4}, {4, 4}, {16, 16}, {2, 2}})});
  std::vector<std::pair<int, int>> buckets;
  for (const Bucket& b : plan.sub_groups[0].buckets) buckets.emplace_back(b.begin, b.end);
  EXPECT_EQ(buckets, (std::vector<std::pair<int, int>>{{0, 1}, {1, 3}, {3, 4}, {4, 5}}));
}

// What a rank sends another is what that one expects, piece by piece, in both all-to-alls.
TEST(StepPlan, SegmentsOfShardsAndOwnersMatchOnEveryPairOfRanks) {
  for (const DType wire : {DType::kFloat32, DType::kBFloat16}) {
    PlanOptions o = options(3);
    o.wire_dtype = wire;
    const StepPlan plan = make_step_plan(o, {muon(3, kMatrices)});
    std::vector<BucketRoute> routes;
    for (int rank = 0; rank < 3; ++rank) routes.push_back(route_of(plan, 0, 0, rank));
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) {
        EXPECT_EQ(routes[a].shard_bytes[b], routes[b].owner_bytes[a]);
        EXPECT_GE(routes[a].shard_bytes[b], kSegmentAlignment);
        EXPECT_EQ(routes[a].shard_bytes[b] % kSegmentAlignment, 0);
      }
    }
  }
}

TEST(StepPlan, TheBytesOfABucketAreThoseOfItsElementsAndFlagWords) {
  constexpr int kWorld = 3;
  const StepPlan plan = make_step_plan(options(kWorld), {muon(kWorld, kMatrices)});
  int64_t bytes = 0, elements = 0;
  for (const auto& [rows, cols] : kMatrices) elements += rows * cols;
  for (int rank = 0; rank < kWorld; ++rank) {
    const BucketRoute route = route_of(plan, 0, 0, rank);
    bytes += std::reduce(route.shard_bytes.begin(), route.shard_bytes.end());
  }
  EXPECT_GE(bytes, 4 * elements + kWorld * kWorld * kSegmentAlignment);
  EXPECT_LE(bytes, 4 * elements + kWorld * kWorld * 2 * kSegmentAlignment);
}

// NCCL takes packs of 16 bytes only where source and destination are both aligned to them.
TEST(StepPlan, APayloadBeginsAlignedOnBothSidesWhateverItsSegmentsHold) {
  PlanOptions o = options(3);
  o.wire_dtype = DType::kBFloat16;
  const StepPlan plan = make_step_plan(o, {muon(3, kMatrices)});
  const auto first_offsets = [](const std::vector<RoutePiece>& pieces, const auto& segments) {
    std::vector<int64_t> payloads;  // where the first piece of a segment lies
    int64_t begin = 0;
    for (const int64_t bytes : segments) {
      for (const RoutePiece& piece : pieces) {
        if (piece.wire_offset < begin || piece.wire_offset >= begin + bytes) continue;
        payloads.push_back(piece.wire_offset);
        break;
      }
      begin += bytes;
    }
    return payloads;
  };
  int seen = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const BucketRoute route = route_of(plan, 0, 0, rank);
    for (const auto& offsets : {first_offsets(route.shard_pieces, route.shard_bytes),
                                first_offsets(route.owner_pieces, route.owner_bytes)}) {
      for (const int64_t offset : offsets) {
        EXPECT_EQ(offset % 128, 0);
        ++seen;
      }
    }
  }
  EXPECT_GE(seen, 6);
}

TEST(StepPlan, ShapesChooseTheirForm) {
  const StepPlan plan = make_step_plan(options(1), {muon(1, {{8, 8}, {8, 11}, {8, 16}, {30, 8}})});
  std::vector<std::string> forms;
  for (const auto& p : plan.newton_schulz) forms.push_back(ops::name_of(p.form));
  EXPECT_EQ(forms, (std::vector<std::string>{"standard", "standard", "gram", "gram"}));
}

TEST(StepPlan, TheHashCoversHowAMatrixIsComputedButNotHowManyAreComputedAtOnce) {
  const auto hash = [](const std::function<void(PlanOptions&)>& change) {
    PlanOptions o = options(2);
    o.target = {CpuIsa::kAvx512Bf16, true, false};
    change(o);
    return make_step_plan(o, {muon(2, {{64, 64}, {64, 64}, {64, 64}, {64, 64}})});
  };
  const StepPlan plan = hash([](auto&) {});
  EXPECT_NE(plan.hash(), hash([](auto& o) { o.target.isa = CpuIsa::kAvx2; }).hash());
  EXPECT_NE(plan.hash(), hash([](auto& o) { o.target.onednn = false; }).hash());
  // Without rows of its own a machine takes those of another: its libraries still compute its way.
  EXPECT_NE(plan.hash(), hash([](auto& o) { o.target.isa = CpuIsa::kAmxBf16; }).hash());
  EXPECT_NE(plan.arithmetic_hash(),
            hash([](auto& o) { o.target.isa = CpuIsa::kAmxBf16; }).arithmetic_hash());
  const StepPlan lanes = hash([](auto& o) { o.lanes = 2; });
  EXPECT_EQ(plan.hash(), lanes.hash());
  EXPECT_EQ(buffer_sizes(lanes, 0).scratch_numel, 2 * buffer_sizes(plan, 0).scratch_numel);
  const auto on_cuda = [&](int lanes_there) {
    return hash([&](auto& o) { o.target = ops::cuda_target(), o.lanes = lanes_there; });
  };
  EXPECT_EQ(buffer_sizes(on_cuda(2), 0).scratch_numel, buffer_sizes(on_cuda(1), 0).scratch_numel);
}

// Bits are equal on one kind of GPU with one cuBLAS only.
TEST(StepPlan, HashNamesTheKindOfGpu) {
  const auto on = [](const char* gpu) {
    PlanOptions o = options(2);
    o.target = ops::cuda_target(gpu);
    return make_step_plan(o, {muon(2, {{64, 64}})});
  };
  EXPECT_EQ(on("sm_90, CUDA 13.0").hash(), on("sm_90, CUDA 13.0").hash());
  EXPECT_NE(on("sm_90, CUDA 13.0").hash(), on("sm_100, CUDA 13.0").hash());
  EXPECT_NE(on("sm_90, CUDA 13.0").arithmetic_hash(), on("sm_90, CUDA 13.2").arithmetic_hash());
}

TEST(StepPlan, TheHashCoversTheStagesAndTheArithmeticHashDoesNot) {
  const StepPlan plan = make_step_plan(options(2), {muon(2, {{64, 64}})});
  StepPlan more = plan;
  more.stages.on_owner.push_back(more.stages.on_owner.back());
  EXPECT_NE(plan.hash(), more.hash());
  EXPECT_EQ(plan.arithmetic_hash(), more.arithmetic_hash());
}

TEST(StepPlan, ScalesFollowTheirFormulasAndTransposedStorageUsesOutOverIn) {
  EXPECT_DOUBLE_EQ(scale_factor(Scale::kOriginal, 16, 4), 2.0);
  EXPECT_DOUBLE_EQ(scale_factor(Scale::kOriginal, 4, 16), 1.0);
  EXPECT_DOUBLE_EQ(scale_factor(Scale::kSpectralUnclamped, 4, 16), 0.5);
  EXPECT_DOUBLE_EQ(scale_factor(Scale::kMatchRmsAdamW, 25, 100), 2.0);
  EXPECT_DOUBLE_EQ(scale_factor(Scale::kNone, 16, 4), 1.0);
  PlanOptions o = options(1);
  o.scale = Scale::kOriginal;
  SubGroupSpec group = muon(1, {{4, 16}});
  group.params[0].transposed = true;
  EXPECT_DOUBLE_EQ(make_step_plan(o, {group}).sub_groups[0].blocks[0].scale, 2.0);
}

TEST(StepPlan, TheScaleOfAHeadIsThatOfTheHead) {
  PlanOptions o = options(1);
  SubGroupSpec group = muon(1, {{8, 4}});
  group.params[0].blocks = {{0, 0, 2, 0, 4}, {0, 2, 8, 0, 4}};
  const StepPlan plan = make_step_plan(o, {group});
  EXPECT_DOUBLE_EQ(plan.sub_groups[0].blocks[0].scale, 0.2 * 2);
  EXPECT_EQ(plan.newton_schulz[0].rows, 2);
}

TEST(StepPlan, BlocksThatOverlapAreRefused) {
  SubGroupSpec group = muon(1, {{8, 4}});
  group.params[0].blocks = {{0, 0, 5, 0, 4}, {0, 4, 8, 0, 4}};
  const auto text = message_of([&] { make_step_plan(options(1), {group}); });
  EXPECT_NE(text.find("\"w0\""), std::string::npos);
  EXPECT_NE(text.find("overlap"), std::string::npos) << text;
}

TEST(StepPlan, ElementsWithoutAnOwnerAreRefused) {
  SubGroupSpec group = muon(1, {{8, 4}});
  group.params[0].blocks = {{0, 0, 5, 0, 4}};
  const auto text = message_of([&] { make_step_plan(options(1), {group}); });
  EXPECT_NE(text.find("20 of 32"), std::string::npos) << text;
}

TEST(StepPlan, BlocksThatOverlapAmongManyAreRefusedByName) {
  const auto text_of = [](std::vector<MatrixBlock> blocks) {
    SubGroupSpec group = muon(1, {{12, 6}});
    group.params[0].blocks = std::move(blocks);
    return message_of([&] { make_step_plan(options(1), {group}); });
  };
  EXPECT_EQ(text_of({{0, 0, 1, 0, 6, 4, 3}, {0, 1, 3, 0, 6, 4, 3}}), "no error");
  EXPECT_EQ(text_of({{0, 8, 12, 0, 6}, {0, 0, 8, 4, 6}, {0, 0, 8, 0, 4}}), "no error");
  for (const auto& blocks : std::vector<std::vector<MatrixBlock>>{
           {{0, 0, 8, 2, 6}, {0, 0, 4, 0, 2}, {0, 4, 12, 0, 3}, {0, 8, 12, 3, 6}},
           {{0, 0, 2, 0, 6, 4, 3}, {0, 1, 3, 0, 6, 4, 3}},
           {{0, 0, 1, 0, 6}, {0, 0, 12, 0, 6}}}) {
    EXPECT_NE(text_of(blocks).find("overlap"), std::string::npos) << text_of(blocks);
  }
  EXPECT_NE(text_of({{0, 0, 2, 0, 6, 7, 2}}).find("outside its view"), std::string::npos);
  EXPECT_NE(text_of({{0, 0, 2, 0, 6, 3, 1}}).find("overlap"), std::string::npos);
  EXPECT_NE(text_of({{0, 0, 2, 0, 3, 3, 4}}).find("not whole"), std::string::npos);
  EXPECT_NE(text_of({{0, 0, 1, 0, 6, 4, 3}}).find("24 of 72"), std::string::npos);
}

// Experts, and heads of two parts. Those of columns take whole lines of the matrix buffer: others
// would be a piece each.
SubGroupSpec stacks(int world, int64_t experts) {
  SubGroupSpec group = muon(world, {{experts * 6, 10}, {experts * 16, 6}, {experts * 5, 4}});
  for (int64_t e = 0; e < experts; ++e) {
    group.params[0].blocks.push_back({0, 6 * e, 6 * e + 3, 0, 10});
    group.params[0].blocks.push_back({0, 6 * e + 3, 6 * e + 6, 0, 10});
    group.params[1].blocks.push_back({0, 16 * e, 16 * e + 16, 0, 4});
    group.params[1].blocks.push_back({0, 16 * e, 16 * e + 16, 4, 6});
    group.params[2].blocks.push_back({0, 5 * e, 5 * e + 3, 0, 4});
    group.params[2].blocks.push_back({0, 5 * e + 3, 5 * e + 5, 0, 4});
  }
  return group;
}

TEST(StepPlan, TheBlocksOfAnOwnerTravelInThreePiecesAShapeAtMost) {
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const int64_t bytes : {1, 200, 1000, 1 << 20}) {
      PlanOptions o = options(world);
      o.bucket_bytes = bytes;
      const StepPlan plan = make_step_plan(o, {stacks(world, 24)});
      const SubGroupPlan& group = plan.sub_groups[0];
      for (int k = 0; k < static_cast<int>(group.buckets.size()); ++k) {
        for (int rank = 0; rank < world; ++rank) {
          const BucketRoute route = route_of(plan, 0, k, rank);
          std::map<std::tuple<int, int, int>, int> pieces;  // by parameter, shape and owner
          for (const RoutePiece& piece : route.shard_pieces) {
            const PlannedBlock& b = group.blocks[piece.block];
            ++pieces[{b.block.param, b.newton_schulz, b.owner}];
          }
          for (const auto& [kind, count] : pieces) EXPECT_LE(count, 3) << "W=" << world;
        }
      }
    }
  }
}

TEST(StepPlan, APieceOfManyBlocksNamesEachOfThem) {
  for (const int world : {1, 3, 4}) {
    const StepPlan plan = make_step_plan(options(world), {stacks(world, 12)});
    const SubGroupPlan& group = plan.sub_groups[0];
    int of_several = 0;
    for (int rank = 0; rank < world; ++rank) {
      for (const RoutePiece& piece : route_of(plan, 0, 0, rank).shard_pieces) {
        of_several += piece.block_of(piece.run.count - 1) != piece.block ? 1 : 0;
        for (int64_t r = 0; r < piece.run.count; ++r) {
          const int64_t at = piece.run.shard_offset + r * piece.run.shard_stride;
          const MatrixBlock& block = group.blocks[piece.block_of(r)].block;
          bool there = false;
          for (const StridedRun& run : group.layout.runs(block, rank)) {
            for (int64_t i = 0; i < run.count; ++i) {
              there |= at == run.shard_offset + i * run.shard_stride;
            }
          }
          EXPECT_TRUE(there) << "run " << r << " of a piece of " << piece.run.count;
        }
      }
    }
    EXPECT_GT(of_several, 0);
  }
}

// A stack lies expert by expert in the shards: who holds one owns it, and in every bucket each rank
// sends as much as any other.
TEST(StepPlan, ExpertsStayWhereTheyAreHeld) {
  constexpr int kWorld = 4;
  SubGroupSpec group = muon(kWorld, {{32 * 8, 8}});
  for (int64_t e = 0; e < 32; ++e) group.params[0].blocks.push_back({0, 8 * e, 8 * e + 8, 0, 8});
  PlanOptions o = options(kWorld);
  o.bucket_bytes = 4 * 8 * 8 * 2;
  const StepPlan plan = make_step_plan(o, {group});
  ASSERT_EQ(plan.sub_groups[0].buckets.size(), 4u);
  for (int k = 0; k < 4; ++k) {
    for (int rank = 0; rank < kWorld; ++rank) {
      const BucketRoute route = route_of(plan, 0, k, rank);
      EXPECT_EQ(route.owned.size(), 2u);
      for (int peer = 0; peer < kWorld; ++peer) {
        EXPECT_EQ(route.shard_bytes[peer], kSegmentAlignment + (peer == rank ? 2 * 4 * 64 : 0));
      }
    }
  }
}

TEST(StepPlan, TheTableHasALineForBlocksOfOneShape) {
  const StepPlan plan = make_step_plan(options(2), {stacks(2, 24)});
  const std::string table = plan.table();
  for (const char* text : {"48 x (3x10)", "24 x (16x4)", "24 x (16x2)", "24 x (3x4)", "0-1"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << " missing in\n" << table;
  }
  EXPECT_LT(std::count(table.begin(), table.end(), '\n'), 20) << table;
}

TEST(StepPlan, TheHashIsTheSameForTheSameInputAndDiffersForEveryDecision) {
  const auto hash = [](const std::function<void(PlanOptions&, SubGroupSpec&)>& change) {
    PlanOptions o = options(2);
    SubGroupSpec group = muon(2, kMatrices);
    change(o, group);
    return make_step_plan(o, {group}).hash();
  };
  const std::string same = hash([](auto&, auto&) {});
  EXPECT_EQ(same, hash([](auto&, auto&) {}));
  EXPECT_EQ(same.size(), 16u);
  const std::vector<std::string> others = {
      hash(
          [](auto& o, auto&) { o.newton_schulz.coefficients = ops::find_coefficient_set("cans"); }),
      hash([](auto& o, auto&) { o.scale = Scale::kOriginal; }),
      hash([](auto& o, auto&) { o.wire_dtype = DType::kBFloat16; }),
      hash([](auto& o, auto&) { o.newton_schulz.form = ops::NewtonSchulzForm::kStandard; }),
      hash([](auto&, auto& g) { g.params[0].decay = false; }),
      hash([](auto&, auto& g) { g.params[0].shard.name = "v"; }),
      hash([](auto&, auto& g) { g.params[0].transposed = true; }),
      hash([](auto&, auto& g) {
        g.params[0].blocks = {{0, 0, 4, 0, 8}, {0, 4, 8, 0, 8}};
      }),
      hash([](auto&, auto& g) {
        g.params[0].blocks = {{0, 0, 2, 0, 8, 2, 4}, {0, 2, 4, 0, 8, 2, 4}};
      }),
  };
  for (size_t i = 0; i < others.size(); ++i) {
    if (i == 6) continue;  // w0 is square: its scale is the same either way
    EXPECT_NE(same, others[i]) << "change " << i;
  }
}

TEST(StepPlan, TheTableNamesEveryMatrixWithShapeFormAndOwner) {
  const StepPlan plan = make_step_plan(options(2), {muon(2, {{8, 8}, {16, 4}})});
  const std::string table = plan.table();
  for (const char* text : {"w0", "8x8", "standard", "w1", "16x4", "gram", "rank 1", "bucket 0"}) {
    EXPECT_NE(table.find(text), std::string::npos) << text << " missing in\n" << table;
  }
}

TEST(StepPlan, AnAdamWSubGroupHasNoBuckets) {
  SubGroupSpec group = muon(2, kMatrices);
  group.role = Role::kAdamW;
  const StepPlan plan = make_step_plan(options(2), {group});
  EXPECT_TRUE(plan.sub_groups[0].buckets.empty());
  const offload::BufferSizes sizes = buffer_sizes(plan, 0);
  EXPECT_EQ(sizes.total_bytes(),
            offload::aligned(sizes.record_bytes) + offload::aligned(sizes.device_alarm_bytes));
}

}  // namespace
}  // namespace zeromuon::zero3
