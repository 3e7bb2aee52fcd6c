#include "zero3/plan/step_plan.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <numeric>

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
