#include "tests/zero3/step/pipeline_runs.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mul.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <tuple>

#include "tests/csrc/ranks.h"
#include "tests/zero3/step/step_model.h"

namespace zeromuon::zero3 {
namespace {

constexpr float kGradientScale = 0.37f;

const std::vector<std::pair<Role, std::vector<Shape>>> kGroups = {
    {Role::kMuon, {{12, 8}, {1, 2}, {30, 7}}},
    {Role::kAdamW, {{40, 3}, {1, 7}}},
    {Role::kMuon, {{8, 40}, {5, 5}, {16, 16}, {3, 1}}},
    {Role::kAdamW, {{1, 33}}}};

at::Tensor zeros_like_shard(const ShardLayout& layout, int rank) {
  at::Tensor shard = at::full({layout.shard_numel()}, std::nan(""));
  for (size_t p = 0; p < layout.params().size(); ++p) {
    const ShardRange real = layout.real_range(static_cast<int>(p), rank);
    shard.narrow(0, real.offset, real.numel).zero_();
  }
  return shard;
}

at::Tensor copy_of(const at::Tensor& t) { return t.defined() ? t.clone() : t; }

c10::Device compute_of(const Way& way) { return way.gpu ? c10::Device(at::kCUDA, 0) : at::kCPU; }

offload::Backend backend_of(const Way& way) {
  if (way.gpu) {
    auto backend = offload::make_backend({at::kCPU, compute_of(way)}, ops::CpuKernels::kAuto);
    backend.hands_over = way.hands_over;
    return backend;
  }
  if (way.fake) {
    offload::FakeDeviceOptions options = way.fake_options;
    options.streams = way.hands_over;
    return offload::make_fake_backend(options);
  }
  return offload::make_backend({at::kCPU, at::kCPU}, ops::CpuKernels::kAuto);
}

}  // namespace

std::string Way::text() const {
  return concat("W=", world, ", wire ", name_of(wire), ", ",
                staged() ? concat(gpu ? "GPU" : "fake", ", momentum ", name_of(home)) : "host",
                hands_over ? ", handed over" : "", fused ? ", fused" : ", plain",
                folds_scale ? ", folded scale" : "", ", ", slots, " slots of ", bucket_bytes,
                " bytes, cast ", low ? c10::toString(*low) : "none",
                decay == ops::Decay::kCautious ? ", cautious decay" : "", ", seed ",
                fake_options.seed);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  return !a.defined() ||
         (a.nbytes() == b.nbytes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
}

std::string difference(const RankTensors& a, const RankTensors& b) {
  for (size_t g = 0; g < a.size(); ++g) {
    const auto differs = [&](const char* name, at::Tensor SubGroupTensors::*member) {
      return same_bits(a[g].*member, b[g].*member) ? "" : concat(name, " of sub-group ", g);
    };
    for (const std::string& what : {differs("weight", &SubGroupTensors::weight),
                                    differs("momentum", &SubGroupTensors::momentum),
                                    differs("exp_avg", &SubGroupTensors::exp_avg),
                                    differs("exp_avg_sq", &SubGroupTensors::exp_avg_sq),
                                    differs("low-precision weight", &SubGroupTensors::low)}) {
      if (!what.empty()) return what;
    }
  }
  return "";
}

// ---- the job

const Job& Job::of(int world) {
  static std::map<int, Job> jobs;
  const auto found = jobs.find(world);
  return found != jobs.end() ? found->second : jobs.emplace(world, Job(world)).first->second;
}

Job::Job(int world) : start_(world), gradients_(2) {
  for (auto& steps : gradients_) {
    steps.assign(kSteps, std::vector<std::vector<at::Tensor>>(kGroups.size()));
  }
  uint64_t seed = 71;
  for (size_t g = 0; g < kGroups.size(); ++g) {
    const auto& [role, shapes] = kGroups[g];
    const Model model(shapes, seed++);
    specs_.push_back(model.spec(role, world));
    const StepPlan planned = make_step_plan(options(world), {specs_.back()});
    const ShardLayout& layout = planned.sub_groups[0].layout;
    for (int rank = 0; rank < world; ++rank) {
      SubGroupTensors& made = start_[rank].emplace_back();
      made.weight = Model::shard_of(model.weights, layout, rank);
      for (at::Tensor* state : {&made.momentum, &made.exp_avg, &made.exp_avg_sq}) {
        if ((state == &made.momentum) == (role == Role::kMuon)) {
          *state = zeros_like_shard(layout, rank);
        }
      }
    }
    for (int step = 0; step < kSteps; ++step) {
      const auto whole = model.gradients(static_cast<int>(10 * g) + step);
      for (int rank = 0; rank < world; ++rank) {
        const at::Tensor shard = Model::shard_of(whole, layout, rank);
        gradients_[0][step][g].push_back(shard);
        gradients_[1][step][g].push_back(at::mul(shard, kGradientScale));
      }
    }
  }
}

StepPlan Job::plan(const Way& way) const {
  PlanOptions o = options(way.world, way.wire, way.bucket_bytes);
  o.slots = way.slots;
  if (way.gpu) o.target = ops::cuda_target();
  o.flow = {way.staged(), way.home, DType::kFloat32,
            way.low ? CastWeights::kOnDevice : CastWeights::kNone};
  return make_step_plan(o, specs_);
}

RankTensors Job::start(int rank, std::optional<at::ScalarType> low) const {
  RankTensors copies;
  for (const SubGroupTensors& t : start_[rank]) {
    copies.push_back(
        {copy_of(t.weight), copy_of(t.momentum), copy_of(t.exp_avg), copy_of(t.exp_avg_sq), {}});
    if (low) copies.back().low = at::full(t.weight.sizes(), std::nan(""), *low);
  }
  return copies;
}

const at::Tensor& Job::gradient(int step, int sub_group, int rank, bool scaled) const {
  return gradients_[scaled][step][sub_group][rank];
}

// ---- a rank

RankRun::RankRun(const Way& way, const StepPlan& plan, std::shared_ptr<comm::InProcessBoard> board,
                 int rank, StepLimits limits)
    : way_(way), rank_(rank), tensors_(Job::of(way.world).start(rank, way.low)) {
  offload::Backend backend = backend_of(way);
  if (way.wrap) backend.compute = way.wrap(std::move(backend.compute));
  device_ = backend.compute.get();
  registrar_ = std::dynamic_pointer_cast<offload::FakeRegistrar>(backend.registrar);
  std::unique_ptr<comm::Collectives> collectives =
      std::make_unique<comm::InProcessCollectives>(std::move(board), rank, way.copy);
  if (way.wrap_collectives) collectives = way.wrap_collectives(std::move(collectives));
  for (const SubGroupTensors& t : tensors_) {
    const bool momentum = way.staged() && way.home == offload::MomentumHome::kDevice;
    momenta_.push_back(momentum ? away(t.momentum) : Away{});
    lows_.push_back(way.staged() ? away(t.low) : Away{});
  }
  executor_ =
      std::make_unique<StepExecutor>(plan, offload::Placement{at::kCPU, compute_of(way), way.home},
                                     std::move(backend), std::move(collectives), std::move(limits));
  const RankTensors start = tensors_;
  if (way.staged() && way.home == offload::MomentumHome::kStreamed) {
    for (SubGroupTensors& t : tensors_) {
      if (!t.momentum.defined()) continue;
      t.momentum = executor_->registered_zeros(t.momentum.numel(), at::kFloat);
    }
  }
  load(start);
}

RankRun::Away RankRun::away(const at::Tensor& like) {
  if (!like.defined()) return {};
  const offload::Memory memory = device_->allocate(static_cast<int64_t>(like.nbytes()));
  return {memory,
          at::from_blob(memory.get(), like.sizes(), like.options().device(compute_of(way_)))};
}

void RankRun::load_away(const Away& to, const at::Tensor& from) {
  if (!to.alias.defined()) return;
  device_->copy_to_device(to.memory.get(), from.data_ptr(), static_cast<int64_t>(from.nbytes()));
  device_->wait_for_caller();
}

at::Tensor RankRun::read_away(const Away& from) const {
  at::Tensor host = at::empty(from.alias.sizes(), from.alias.options().device(at::kCPU));
  device_->copy_to_host(host.data_ptr(), from.memory.get(), static_cast<int64_t>(host.nbytes()));
  device_->wait_for_caller();
  return host;
}

void RankRun::load(const RankTensors& tensors) {
  for (size_t g = 0; g < tensors_.size(); ++g) {
    const SubGroupTensors& from = tensors[g];
    for (const auto member :
         {&SubGroupTensors::weight, &SubGroupTensors::momentum, &SubGroupTensors::exp_avg,
          &SubGroupTensors::exp_avg_sq, &SubGroupTensors::low}) {
      if ((from.*member).defined()) (tensors_[g].*member).copy_(from.*member);
    }
    load_away(momenta_[g], from.momentum);
    load_away(lows_[g], from.low);
  }
}

RankTensors RankRun::tensors() const {
  RankTensors copies;
  for (size_t g = 0; g < tensors_.size(); ++g) {
    const SubGroupTensors& t = tensors_[g];
    copies.push_back({copy_of(t.weight),
                      momenta_[g].alias.defined() ? read_away(momenta_[g]) : copy_of(t.momentum),
                      copy_of(t.exp_avg), copy_of(t.exp_avg_sq),
                      lows_[g].alias.defined() ? read_away(lows_[g]) : copy_of(t.low)});
  }
  return copies;
}

SubGroupTask RankRun::task(int number, int g) const {
  const Job& job = Job::of(way_.world);
  const SubGroupTensors& t = tensors_[g];
  const at::Tensor& gradient = job.gradient(number, g, rank_, !way_.folds_scale);
  const at::Tensor& low = lows_[g].alias.defined() ? lows_[g].alias : t.low;
  const float scale = way_.folds_scale ? kGradientScale : 1.0f;
  if (!t.momentum.defined()) {
    return AdamWTask{g,
                     {t.weight, gradient, t.exp_avg, t.exp_avg_sq, low},
                     {kLr, kDecay, 0.9, 0.95, 1e-8, number + 1, way_.decay, scale}};
  }
  const at::Tensor& momentum = momenta_[g].alias.defined() ? momenta_[g].alias : t.momentum;
  return MuonTask{g,
                  {t.weight, gradient, momentum, low},
                  {kLr, kDecay, kMomentum, ops::MomentumKind::kEma, true, scale, way_.decay}};
}

void RankRun::step(int number) {
  std::vector<SubGroupTask> tasks;
  for (size_t g = 0; g < tensors_.size(); ++g) tasks.push_back(task(number, static_cast<int>(g)));
  const size_t together = way_.fused ? tasks.size() : 1;
  for (size_t g = 0; g < tasks.size(); g += together)
    executor_->step(std::span(tasks).subspan(g, together));
}

// ---- all ranks

std::vector<RankTensors> train(const Way& way, int steps) {
  const StepPlan plan = Job::of(way.world).plan(way);
  const auto board = std::make_shared<comm::InProcessBoard>(way.world);
  std::vector<RankTensors> results(way.world);
  const auto errors = testing::on_ranks(way.world, [&](int rank) {
    RankRun run(way, plan, board, rank);
    for (int step = 0; step < steps; ++step) run.step(step);
    results[rank] = run.tensors();
  });
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::runtime_error(concat(way.text(), ": ", error));
  }
  return results;
}

const std::vector<RankTensors>& plain(const Way& way) {
  using Key = std::tuple<int, DType, std::optional<at::ScalarType>, ops::Decay>;
  static std::map<Key, std::vector<RankTensors>> results;  // tests ask on one thread
  const Key key{way.world, way.wire, way.low, way.decay};
  const auto found = results.find(key);
  if (found != results.end()) return found->second;
  Way path;
  path.world = way.world;
  path.wire = way.wire;
  path.low = way.low;
  path.decay = way.decay;
  return results.emplace(key, train(path)).first->second;
}

int seeds_wanted() {
  const char* const text = std::getenv("ZEROMUON_SEEDS");
  const int count = text == nullptr ? 50 : std::atoi(text);
  require(count > 0, "ZEROMUON_SEEDS: expected a positive number, got \"", text, "\"");
  return count;
}

}  // namespace zeromuon::zero3
