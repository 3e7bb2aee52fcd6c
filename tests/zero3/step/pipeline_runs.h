// Steps of a small model with Muon and AdamW sub-groups, in every way that the pipeline can take.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/comm/in_process_collectives.h"
#include "offload/fake/fake_backend.h"
#include "zero3/step/step_executor.h"

namespace zeromuon::zero3 {

// How steps are taken. The default is the plain path: all in host memory, one sub-group at a time.
struct Way {
  int world = 1;
  DType wire = DType::kFloat32;
  std::optional<at::ScalarType> low = {};  // of weights that are cast; on the device if fake
  bool fake = false;
  bool gpu = false;         // in the place of the fake device: the first GPU
  bool hands_over = false;  // lanes of the GPU or the fake device, which has streams then
  offload::MomentumHome home = offload::MomentumHome::kShard;
  bool fused = false;  // all sub-groups in one call
  ops::Decay decay = ops::Decay::kDecoupled;
  bool folds_scale = false;  // gradients are scaled by the kernels, not before
  int slots = 1;
  int64_t bucket_bytes = 1 << 20;
  offload::FakeDeviceOptions fake_options = {};
  // Takes the place of the compute device.
  std::function<std::unique_ptr<offload::Device>(std::unique_ptr<offload::Device>)> wrap = {};
  comm::InProcessCollectives::Copy copy = {};  // between the buffers of ranks, if not the host's
  // The same of a rank's collectives.
  std::function<std::unique_ptr<comm::Collectives>(std::unique_ptr<comm::Collectives>)>
      wrap_collectives = {};

  bool staged() const { return fake || gpu; }
  std::string text() const;
};

// What it is made of, but for the exchange.
class WrappedCollectives : public comm::Collectives {
 public:
  explicit WrappedCollectives(std::unique_ptr<comm::Collectives> inner)
      : inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int world_size() const override { return inner_->world_size(); }
  std::string abort(const std::string& cause) override { return inner_->abort(cause); }
  std::string cause() override { return inner_->cause(); }

 protected:
  comm::Collectives& inner() { return *inner_; }

 private:
  std::unique_ptr<comm::Collectives> inner_;
};

// One sub-group's tensors, [L] in host memory; undefined where its role or the way has none.
struct SubGroupTensors {
  at::Tensor weight, momentum, exp_avg, exp_avg_sq, low;
};
using RankTensors = std::vector<SubGroupTensors>;  // per sub-group

bool same_bits(const at::Tensor& a, const at::Tensor& b);
// "" where all bits are the same, else the first tensor that differs.
std::string difference(const RankTensors& a, const RankTensors& b);

// The model on some ranks. Sub-groups 0 and 2 are Muon's, 1 and 3 AdamW's.
// Thread: const; any.
class Job {
 public:
  static constexpr int kSteps = 3;
  // The first call for a world size is made by one thread.
  static const Job& of(int world);

  StepPlan plan(const Way& way) const;
  // Before the first step, in memory of its own.
  RankTensors start(int rank, std::optional<at::ScalarType> low) const;
  const at::Tensor& gradient(int step, int sub_group, int rank, bool scaled) const;

 private:
  explicit Job(int world);

  std::vector<SubGroupSpec> specs_;
  std::vector<RankTensors> start_;  // per rank
  // [2][kSteps][sub-groups][W]: as they are and scaled
  std::vector<std::vector<std::vector<std::vector<at::Tensor>>>> gradients_;
};

// One rank of a way.
// Thread: one.
class RankRun {
 public:
  RankRun(const Way& way, const StepPlan& plan, std::shared_ptr<comm::InProcessBoard> board,
          int rank, StepLimits limits = {});

  // Step `number`, counted from 0, of all sub-groups.
  void step(int number);
  // What the tensors hold, in host memory.
  RankTensors tensors() const;
  // Gives the tensors other contents, as loading a checkpoint does.
  void load(const RankTensors& tensors);
  StepExecutor& executor() { return *executor_; }
  // What the fake device knows of host memory; null of another way.
  const offload::FakeRegistrar* registrar() const { return registrar_.get(); }

 private:
  // A tensor that lies in the fake device.
  struct Away {
    offload::Memory memory;
    at::Tensor alias;  // its address only; undefined: there is none
  };

  Away away(const at::Tensor& like);
  SubGroupTask task(int number, int sub_group) const;
  void load_away(const Away& to, const at::Tensor& from);
  at::Tensor read_away(const Away& from) const;

  const Way way_;
  const int rank_;
  offload::Device* device_;  // the executor's
  std::shared_ptr<offload::FakeRegistrar> registrar_;
  std::unique_ptr<StepExecutor> executor_;
  RankTensors tensors_;               // in host memory
  std::vector<Away> momenta_, lows_;  // per sub-group
};

// The tensors of every rank after some steps. Raises std::runtime_error when a rank throws.
std::vector<RankTensors> train(const Way& way, int steps = Job::kSteps);

// What the plain path makes of the same job, wire, cast and decay.
const std::vector<RankTensors>& plain(const Way& way);

// ZEROMUON_SEEDS, or 50.
int seeds_wanted();

}  // namespace zeromuon::zero3
