#include "zero3/step/step_executor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "csrc/base/check.h"
#include "csrc/comm/in_process_collectives.h"
#include "tests/csrc/ranks.h"
#include "tests/zero3/step/step_model.h"

namespace zeromuon::zero3 {
namespace {

std::unique_ptr<StepExecutor> make_executor(const StepPlan& plan,
                                            std::shared_ptr<comm::InProcessBoard> board, int rank) {
  const offload::Placement host{at::Device(at::kCPU), at::Device(at::kCPU)};
  return std::make_unique<StepExecutor>(plan, host,
                                        offload::make_backend(host, ops::CpuKernels::kAuto),
                                        std::make_unique<comm::InProcessCollectives>(board, rank));
}

void step(StepExecutor& executor, const MuonShard& shard, const MuonHyperParameters& hyper) {
  const std::vector<SubGroupTask> tasks = {MuonTask{0, shard, hyper}};
  executor.step(tasks);
}

// Weights after `steps` steps on `world` ranks.
std::vector<at::Tensor> train(Model model, const PlanOptions& o, int steps = 3) {
  const int world = o.world_size;
  const StepPlan plan = make_step_plan(o, {model.spec(Role::kMuon, world)});
  const ShardLayout& layout = plan.sub_groups[0].layout;
  auto board = std::make_shared<comm::InProcessBoard>(world);
  std::vector<at::Tensor> result;
  for (const at::Tensor& w : model.weights) result.push_back(at::full_like(w, std::nan("")));
  std::vector<std::vector<at::Tensor>> gradients;
  for (int step = 0; step < steps; ++step) gradients.push_back(model.gradients(step));

  const auto errors = testing::on_ranks(world, [&](int rank) {
    const auto executor = make_executor(plan, board, rank);
    MuonShard shard{Model::shard_of(model.weights, layout, rank), {}, {}};
    shard.momentum = at::full({layout.shard_numel()}, std::nan(""));
    for (size_t p = 0; p < model.weights.size(); ++p) {
      const ShardRange real = layout.real_range(static_cast<int>(p), rank);
      shard.momentum.narrow(0, real.offset, real.numel).zero_();
    }
    for (int i = 0; i < steps; ++i) {
      shard.gradient = Model::shard_of(gradients[i], layout, rank);
      step(*executor, shard, {kLr, kDecay, kMomentum, ops::MomentumKind::kEma, true});
    }
    Model::restore(result, shard.weight, layout, rank);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  return result;
}

// The rows of a block in its parameter, in its order.
at::Tensor rows_of(const MatrixBlock& block) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < block.count; ++i) {
    for (int64_t r = block.row_begin; r < block.row_end; ++r) rows.push_back(r + i * block.period);
  }
  return at::tensor(rows);
}

// The definition on whole tensors: momentum, Newton-Schulz per block, scale, decay.
std::vector<at::Tensor> reference(const Model& model, int steps = 3) {
  std::vector<at::Tensor> weights, momenta;
  for (const at::Tensor& w : model.weights) {
    weights.push_back(w.clone());
    momenta.push_back(at::zeros_like(w));
  }
  for (int step = 0; step < steps; ++step) {
    const auto gradients = model.gradients(step);
    for (size_t p = 0; p < weights.size(); ++p) {
      momenta[p].mul_(kMomentum).add_(gradients[p], 1 - kMomentum);
      const at::Tensor mixed = momenta[p] * kMomentum + gradients[p] * (1 - kMomentum);
      weights[p].mul_(1 - kLr * (p % 2 == 0 ? kDecay : 0.0));
      std::vector<MatrixBlock> blocks = {{0, 0, mixed.size(0), 0, mixed.size(1)}};
      if (p < model.blocks.size() && !model.blocks[p].empty()) blocks = model.blocks[p];
      for (const MatrixBlock& b : blocks) {
        const auto columns = [&](const at::Tensor& t) {
          return t.narrow(1, b.col_begin, b.cols());
        };
        const at::Tensor rows = rows_of(b);
        at::Tensor x = columns(mixed).index_select(0, rows).to(at::kDouble);
        const bool tall = x.size(0) > x.size(1);
        x = (tall ? x.t() : x) / x.norm();
        for (int k = 0; k < 5; ++k) {
          const at::Tensor a = x.matmul(x.t());
          x = 3.4445 * x + (-4.775 * a + 2.0315 * a.matmul(a)).matmul(x);
        }
        const double scale = std::sqrt(std::max(1.0, double(b.rows()) / double(b.cols())));
        columns(weights[p]).index_add_(0, rows, (tall ? x.t() : x).to(at::kFloat), -kLr * scale);
      }
    }
  }
  return weights;
}

double worst(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double out = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = (a[i] - b[i]).abs().max().item<double>();
    out = std::isnan(difference) ? difference : std::max(out, difference);
  }
  return out;
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].equal(b[i])) return false;
  }
  return true;
}

TEST(StepExecutor, MatchesTheReferenceOnWholeTensors) {
  const Model model(kShapes, 11);
  EXPECT_LE(worst(train(model, options(1)), reference(model)), 2e-5);
}

TEST(StepExecutor, GivesTheSameBitsAtEveryWorldSize) {
  const Model model(kShapes, 12);
  const auto low = ops::this_cpu().has_bfloat16() ? ops::NewtonSchulzDType::kBFloat16
                                                  : ops::NewtonSchulzDType::kAuto;
  for (const auto dtype : {ops::NewtonSchulzDType::kFloat32, low}) {
    for (const DType wire : {DType::kFloat32, DType::kBFloat16}) {
      const auto with = [&](int world) {
        PlanOptions o = options(world, wire);
        o.newton_schulz.dtype = dtype;
        o.lanes = world;  // another number at once at each
        return train(model, o);
      };
      const auto one = with(1);
      for (const int world : {2, 3, 5}) EXPECT_TRUE(equal(one, with(world))) << "W=" << world;
    }
  }
}

TEST(StepExecutor, GivesTheSameBitsInOneBucketOrInMany) {
  const Model model(kShapes, 13);
  EXPECT_TRUE(equal(train(model, options(2)), train(model, options(2, DType::kFloat32, 64))));
}

TEST(StepExecutor, HeadsAndColumnSplitsAreOrthogonalisedOnTheirOwn) {
  Model model(kShapes, 14);
  model.blocks = {{{0, 0, 4, 0, 8}, {0, 4, 12, 0, 8}},
                  {},
                  {{0, 0, 30, 0, 3}, {0, 0, 30, 3, 7}},
                  {{0, 0, 4, 0, 20}, {0, 0, 4, 20, 40}, {0, 4, 8, 0, 40}}};
  const auto expected = reference(model);
  const auto one = train(model, options(1));
  EXPECT_LE(worst(one, expected), 2e-5);
  for (const int world : {2, 3, 5}) EXPECT_TRUE(equal(one, train(model, options(world))));
}

// Experts one under the other, each gate and up; heads of q, k and v in turns; experts stored
// (in, out), with gate and up side by side; parts of two sizes in turns.
TEST(StepExecutor, StacksAndInterleavedPartsAreOrthogonalisedOnTheirOwn) {
  Model model({{40, 6}, {36, 5}, {15, 14}, {21, 4}, {7, 9}}, 22);
  model.blocks.resize(5);
  for (int64_t e = 0; e < 10; ++e) model.blocks[0].push_back({0, 4 * e, 4 * e + 4, 0, 6});
  for (int64_t part = 0; part < 3; ++part) {
    model.blocks[1].push_back({0, 3 * part, 3 * part + 3, 0, 5, 4, 9});
  }
  for (int64_t e = 0; e < 5; ++e) {
    for (int64_t half = 0; half < 2; ++half) {
      model.blocks[2].push_back({0, 3 * e, 3 * e + 3, 7 * half, 7 * half + 7});
    }
  }
  for (int64_t head = 0; head < 7; ++head) {
    model.blocks[3].push_back({0, 3 * head, 3 * head + 2, 0, 4});
    model.blocks[3].push_back({0, 3 * head + 2, 3 * head + 3, 0, 4});
  }
  const auto expected = reference(model);
  const auto one = train(model, options(1));
  EXPECT_LE(worst(one, expected), 2e-5);
  for (const int world : {1, 2, 3, 5, 8}) {
    EXPECT_TRUE(equal(one, train(model, options(world)))) << "W=" << world;
    // Each parameter in several buckets.
    EXPECT_TRUE(equal(one, train(model, options(world, DType::kFloat32, 100)))) << "W=" << world;
  }
}

TEST(StepExecutor, ABFloat16WireStaysNearTheFloat32One) {
  const Model model({{64, 64}, {96, 32}, {48, 160}}, 15);
  const auto exact = train(model, options(2), 1),
             rounded = train(model, options(2, DType::kBFloat16), 1);
  for (size_t i = 0; i < exact.size(); ++i) {
    const at::Tensor start = model.weights[i] * (1 - kLr * (i % 2 == 0 ? kDecay : 0.0));
    const double error = (rounded[i] - exact[i]).norm().item<double>();
    EXPECT_LE(error, 1e-2 * (exact[i] - start).norm().item<double>()) << i;
  }
}

TEST(StepExecutor, AdamWLeavesPaddingAloneAndDecaysByMask) {
  const Model model(kShapes, 16);
  const StepPlan plan = make_step_plan(options(3), {model.spec(Role::kAdamW, 3)});
  const ShardLayout& layout = plan.sub_groups[0].layout;
  const std::vector<at::Tensor> gradients = model.gradients(0);
  auto board = std::make_shared<comm::InProcessBoard>(3);
  std::vector<AdamWShard> shards(3);
  const auto errors = testing::on_ranks(3, [&](int rank) {
    const auto executor = make_executor(plan, board, rank);
    AdamWShard& shard = shards[rank];
    shard = {Model::shard_of(model.weights, layout, rank), Model::shard_of(gradients, layout, rank),
             at::zeros({layout.shard_numel()}), at::zeros({layout.shard_numel()})};
    const std::vector<SubGroupTask> tasks = {
        AdamWTask{0, shard, {kLr, kDecay, 0.9, 0.95, 1e-8, 1}}};
    executor->step(tasks);
  });
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(errors[rank], "");
    const AdamWShard& shard = shards[rank];
    const at::Tensor before = Model::shard_of(model.weights, layout, rank);
    EXPECT_TRUE(shard.weight.isnan().equal(before.isnan()));
    EXPECT_TRUE(shard.exp_avg.masked_select(before.isnan()).eq(0).all().item<bool>());
    for (size_t p = 0; p < kShapes.size(); ++p) {
      const ShardRange real = layout.real_range(static_cast<int>(p), rank);
      const auto at = [&](const at::Tensor& t) { return t.narrow(0, real.offset, real.numel); };
      // One step of AdamW from zero states moves by lr*sign(g).
      const at::Tensor expected =
          at(before) * (1 - kLr * (p % 2 == 0 ? kDecay : 0.0)) - kLr * at(shard.gradient).sign();
      EXPECT_LE((at(shard.weight) - expected).abs().sum().item<double>(), 1e-4);
    }
  }
}

struct Failure {
  std::vector<std::string> first, second;
  std::vector<char> weights_unchanged;  // per rank; not vector<bool>, whose elements share words
};

// One step on 2 ranks in which `spoil` may damage a rank's shard, then another step.
Failure fail(const Model& model, const PlanOptions& o,
             const std::function<void(int, MuonShard&)>& spoil) {
  const StepPlan plan = make_step_plan(o, {model.spec(Role::kMuon, 2)});
  const ShardLayout& layout = plan.sub_groups[0].layout;
  auto board = std::make_shared<comm::InProcessBoard>(2);
  Failure failure{{}, std::vector<std::string>(2), std::vector<char>(2)};
  failure.first = testing::on_ranks(2, [&](int rank) {
    const auto executor = make_executor(plan, board, rank);
    MuonShard shard{Model::shard_of(model.weights, layout, rank),
                    Model::shard_of(model.gradients(0), layout, rank),
                    at::zeros({layout.shard_numel()})};
    const at::Tensor before = shard.weight.clone();
    spoil(rank, shard);
    const MuonHyperParameters hyper{kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true};
    try {
      step(*executor, shard, hyper);
    } catch (const StepError&) {
      failure.weights_unchanged[rank] = shard.weight.nan_to_num(0).equal(before.nan_to_num(0));
      try {
        step(*executor, shard, hyper);
      } catch (const StepError& again) {
        failure.second[rank] = again.what();
      }
      throw;
    }
  });
  return failure;
}

// Muon's group on rank 1 has another value than rank 0's.
std::vector<std::string> step_apart(const std::function<void(MuonHyperParameters&)>& change) {
  const Model model(kShapes, 21);
  const StepPlan plan = make_step_plan(options(2), {model.spec(Role::kMuon, 2)});
  const ShardLayout& layout = plan.sub_groups[0].layout;
  auto board = std::make_shared<comm::InProcessBoard>(2);
  return testing::on_ranks(2, [&](int rank) {
    const auto executor = make_executor(plan, board, rank);
    const MuonShard shard{Model::shard_of(model.weights, layout, rank),
                          Model::shard_of(model.gradients(0), layout, rank),
                          at::zeros({layout.shard_numel()})};
    MuonHyperParameters hyper{kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true};
    if (rank == 1) change(hyper);
    try {
      step(*executor, shard, hyper);
    } catch (const StepError&) {
      EXPECT_NE(executor->poisoned(), "");
      throw;
    }
  });
}

TEST(StepExecutor, RanksThatStepWithOtherValuesAllSaySo) {
  const std::vector<std::function<void(MuonHyperParameters&)>> changes = {
      [](auto& hyper) { hyper.lr *= 1 + 1e-12; }, [](auto& hyper) { hyper.weight_decay = 0.1; },
      [](auto& hyper) { hyper.momentum = 0.5; }, [](auto& hyper) { hyper.nesterov = false; }};
  for (const auto& change : changes) {
    for (const std::string& error : step_apart(change)) {
      EXPECT_THAT(error, ::testing::HasSubstr("rank 1 stepped with other values than rank 0"));
      EXPECT_THAT(error, ::testing::HasSubstr("This step was taken apart"));
    }
  }
  for (const std::string& error : step_apart([](auto&) {})) EXPECT_EQ(error, "");
}

TEST(StepExecutor, ANonFiniteMomentumOnOneRankStopsAllBeforeTheApply) {
  const Model model(kShapes, 17);
  const auto failure = fail(model, options(2), [](int rank, MuonShard& shard) {
    if (rank == 1) shard.momentum[0] = std::numeric_limits<float>::infinity();
  });
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_NE(failure.first[rank].find("the momentum of \"w0\""), std::string::npos)
        << failure.first[rank];
    EXPECT_NE(failure.first[rank].find("on rank 1"), std::string::npos);
    EXPECT_NE(failure.first[rank].find("applied in this step: nothing"), std::string::npos);
    EXPECT_NE(failure.second[rank].find("poisoned"), std::string::npos) << failure.second[rank];
    EXPECT_TRUE(failure.weights_unchanged[rank]);
  }
}

TEST(StepExecutor, AnOverflowInsideNewtonSchulzStopsAllAndNamesTheMatrix) {
  const Model model(kShapes, 18);
  PlanOptions o = options(2);
  // Grows without bound: finite momentum in, infinite result out.
  o.newton_schulz.coefficients =
      ops::custom_coefficient_set(std::vector<ops::Triple>(4, {1e10, 1e10, 1e10}));
  const auto failure = fail(model, o, [](int, MuonShard&) {});
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_NE(failure.first[rank].find("Newton-Schulz result of"), std::string::npos)
        << failure.first[rank];
    EXPECT_NE(failure.first[rank].find("momenta advanced: sub-group 0 bucket 0"),
              std::string::npos);
    EXPECT_TRUE(failure.weights_unchanged[rank]);
  }
}

TEST(StepExecutor, AnErrorNamesTheBucketsThatWereApplied) {
  const Model model(kShapes, 19);
  const auto failure =
      fail(model, options(2, DType::kFloat32, 64), [&](int rank, MuonShard& shard) {
        if (rank == 0) shard.momentum[-3] = std::nan("");  // in the last parameters
      });
  EXPECT_NE(failure.first[1].find("applied in this step: sub-group 0 bucket 0"), std::string::npos)
      << failure.first[1];
}

TEST(StepExecutor, ATensorOfAnotherSizeIsRefusedBeforeAnythingChanges) {
  const Model model(kShapes, 20);
  const StepPlan plan = make_step_plan(options(1), {model.spec(Role::kMuon, 1)});
  const auto executor = make_executor(plan, std::make_shared<comm::InProcessBoard>(1), 0);
  const int64_t numel = plan.sub_groups[0].layout.shard_numel();
  const MuonHyperParameters hyper{kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true};
  MuonShard shard{at::randn({numel}), at::randn({numel + 1}), at::zeros({numel})};
  const at::Tensor before = shard.weight.clone();
  try {
    step(*executor, shard, hyper);
    FAIL() << "accepted";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("attach()"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(shard.weight.equal(before));
  shard.gradient = at::randn({numel});
  step(*executor, shard, hyper);  // not poisoned
  EXPECT_FALSE(shard.weight.equal(before));
}

TEST(StepExecutor, KnowsWhichSubGroupIsNextAndCountsWholeSteps) {
  const Model model({{5, 5}}, 22);
  const StepPlan plan =
      make_step_plan(options(1), {model.spec(Role::kMuon, 1), model.spec(Role::kMuon, 1)});
  const auto executor = make_executor(plan, std::make_shared<comm::InProcessBoard>(1), 0);
  const MuonHyperParameters hyper{kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true};
  const auto step_group = [&](int sub_group) {
    const MuonShard shard{at::randn({25}), at::randn({25}), at::zeros({25})};
    executor->step(std::vector<SubGroupTask>{MuonTask{sub_group, shard, hyper}});
  };
  EXPECT_THROW(step_group(1), ValueError);  // a step begins with the first
  step_group(0);
  EXPECT_EQ(executor->next_sub_group(), 1);
  EXPECT_EQ(executor->steps(), 0);
  EXPECT_THROW(step_group(0), ValueError);
  step_group(1);
  EXPECT_EQ(executor->next_sub_group(), 0);
  EXPECT_EQ(executor->steps(), 1);
}

TEST(StepExecutor, StaysPoisonedByTheFirstCauseUntilItRecovers) {
  const Model model({{5, 5}}, 23);
  const StepPlan plan =
      make_step_plan(options(1), {model.spec(Role::kMuon, 1), model.spec(Role::kMuon, 1)});
  const auto executor = make_executor(plan, std::make_shared<comm::InProcessBoard>(1), 0);
  const MuonHyperParameters hyper{kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true};
  const MuonShard shard{at::randn({25}), at::randn({25}), at::zeros({25})};
  const std::vector<SubGroupTask> first = {MuonTask{0, shard, hyper}};
  executor->step(first);
  executor->poison("a");
  executor->poison("b");
  EXPECT_EQ(executor->poisoned(), "a");
  try {
    executor->step(first);
    ADD_FAILURE() << "stepped";
  } catch (const StepError& error) {
    EXPECT_STREQ(error.what(), "the optimizer is poisoned by an earlier failure: a");
  }
  executor->recover();
  EXPECT_EQ(executor->poisoned(), "");
  executor->step(first);  // from the first sub-group on
}

TEST(StepExecutor, ANewtonSchulzRunsOncePerMatrixAndStep) {
  const Model model(kShapes, 21);
  const StepPlan plan = make_step_plan(options(1), {model.spec(Role::kMuon, 1)});
  const auto executor = make_executor(plan, std::make_shared<comm::InProcessBoard>(1), 0);
  const int64_t numel = plan.sub_groups[0].layout.shard_numel();
  const MuonShard shard{at::randn({numel}), at::randn({numel}), at::zeros({numel})};
  for (int number = 1; number <= 3; ++number) {
    step(*executor, shard, {kLr, 0.0, kMomentum, ops::MomentumKind::kEma, true});
    EXPECT_EQ(executor->counters().newton_schulz_matrices,
              number * static_cast<int64_t>(kShapes.size()));
    // There, back, and the closing word.
    EXPECT_EQ(executor->traffic().calls, 3 * number);
  }
}

}  // namespace
}  // namespace zeromuon::zero3
