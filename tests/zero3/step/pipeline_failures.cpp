#include "tests/zero3/step/pipeline_failures.h"

#include <cstring>
#include <mutex>

#include "csrc/base/check.h"
#include "tests/csrc/ranks.h"

namespace zeromuon::zero3 {
namespace {

// The parts of the clause that `title` begins, up to the next clause.
std::set<std::string> clause(const std::string& text, const std::string& title) {
  std::set<std::string> parts;
  size_t at = text.find(title + ": ");
  if (at == std::string::npos) return parts;
  at += title.size() + 2;
  const size_t end = text.find_first_of(";)", at);
  while (at < end) {
    const size_t comma = std::min(end, text.find(", ", at));
    parts.insert(text.substr(at, comma - at));
    at = comma + 2;
  }
  parts.erase("nothing");
  return parts;
}

// What step number 0 throws; "": nothing. Raises what is not a StepError.
std::string error_of_step(RankRun& run) {
  try {
    run.step(0);
  } catch (const StepError& error) {
    return error.what();
  }
  return "";
}

bool same_elements(const at::Tensor& a, const at::Tensor& b, int64_t begin, int64_t numel) {
  const auto size = static_cast<int64_t>(a.element_size());
  const auto* const x = static_cast<const std::byte*>(a.data_ptr());
  const auto* const y = static_cast<const std::byte*>(b.data_ptr());
  return std::memcmp(x + size * begin, y + size * begin, static_cast<size_t>(size * numel)) == 0;
}

// Compares one rank's tensors with what they were and with what they would have become.
class Auditor {
 public:
  Auditor(const Claims& claims, const RankTensors& before, const RankTensors& after,
          const RankTensors& got)
      : claims_(claims), before_(before), after_(after), got_(got) {}

  void muon(int g, int bucket, const BucketRoute& route) {
    name_ = concat("sub-group ", g, " bucket ", bucket);
    for (const RoutePiece& piece : route.shard_pieces) {
      for (int64_t r = 0; r < piece.run.count; ++r) {
        range_ = {piece.run.shard_offset + r * piece.run.shard_stride, piece.run.length};
        weights(g);
        tensor("momentum", g, &SubGroupTensors::momentum, claims_.advanced,
               claims_.advanced_in_doubt);
      }
    }
  }

  void adamw(int g) {
    name_ = concat("sub-group ", g);
    range_ = {0, got_[g].weight.numel()};
    weights(g);
    for (const auto state : {&SubGroupTensors::exp_avg, &SubGroupTensors::exp_avg_sq}) {
      tensor("state", g, state, claims_.applied, claims_.applied_in_doubt);
    }
  }

  const std::string& untruth() const { return untruth_; }

 private:
  void weights(int g) {
    tensor("weight", g, &SubGroupTensors::weight, claims_.applied, claims_.applied_in_doubt);
    if (!got_[g].low.defined() || claims_.casts_in_doubt.count(name_) > 0) return;
    tensor("cast", g, &SubGroupTensors::low, claims_.applied, claims_.applied_in_doubt);
  }

  void tensor(const char* what, int g, at::Tensor SubGroupTensors::*member,
              const std::set<std::string>& changed, const std::set<std::string>& in_doubt) {
    if (in_doubt.count(name_) > 0) return;
    const bool claimed = changed.count(name_) > 0;
    const at::Tensor& expected = (claimed ? after_ : before_)[g].*member;
    if (same_elements(got_[g].*member, expected, range_.offset, range_.numel)) return;
    untruth_ = concat("the ", what, " of ", name_, " is not what it ",
                      claimed ? "would have become" : "was");
  }

  const Claims& claims_;
  const RankTensors &before_, &after_, &got_;
  std::string name_, untruth_;
  ShardRange range_;
};

}  // namespace

std::string cause_of(const std::string& error) {
  return error.substr(0, error.find(" (seen from"));
}

Claims claims_of(const std::string& error) {
  const size_t begin = error.find(" (seen from");
  const std::string text = begin == std::string::npos ? "" : error.substr(begin);
  return {clause(text, "applied in this step"), clause(text, "applied in part or in doubt"),
          clause(text, "low-precision weights not written or in doubt"),
          clause(text, "momenta advanced"), clause(text, "momenta in doubt")};
}

Breakdown break_down(const Attempt& attempt) {
  const int world = attempt.way.world;
  StepPlan plan = Job::of(world).plan(attempt.way);
  if (attempt.plan) attempt.plan(plan);
  const auto board = std::make_shared<comm::InProcessBoard>(world);
  Breakdown result;
  result.errors.resize(world);
  result.tensors.resize(world);
  result.again.resize(world);
  result.recovered.resize(world);
  std::mutex diagnoses;
  result.recovery = testing::on_ranks(world, [&](int rank) {
    Way way = attempt.way;
    if (rank != attempt.victim) way.fake_options.faults.clear();
    RankRun run(way, plan, board, rank, {attempt.stage_timeout, [&](const std::string& text) {
                                           const std::lock_guard lock(diagnoses);
                                           result.diagnoses.push_back(text);
                                         }});
    const RankTensors start = run.tensors();
    if (attempt.spoil && rank == attempt.victim) {
      RankTensors spoiled = run.tensors();
      attempt.spoil(spoiled);
      run.load(spoiled);
    }
    result.errors[rank] = error_of_step(run);
    result.tensors[rank] = run.tensors();
    result.again[rank] = error_of_step(run);
    run.load(start);
    run.executor().recover();
    run.step(0);
    result.recovered[rank] = run.tensors();
  });
  return result;
}

std::string untruth(const Way& way, int rank, const Claims& claims, const RankTensors& before,
                    const RankTensors& after, const RankTensors& got) {
  const StepPlan plan = Job::of(way.world).plan(way);
  Auditor auditor(claims, before, after, got);
  for (int g = 0; g < static_cast<int>(plan.sub_groups.size()); ++g) {
    const SubGroupPlan& group = plan.sub_groups[g];
    if (group.role == Role::kAdamW) auditor.adamw(g);
    for (int k = 0; k < static_cast<int>(group.buckets.size()); ++k) {
      auditor.muon(g, k, route_of(plan, g, k, rank));
    }
  }
  return auditor.untruth();
}

}  // namespace zeromuon::zero3
