// AdamW <-> Muon, and the two kinds of momentum.
//
// Note [Units of a momentum]
// An EMA momentum is m <- beta m + (1 - beta) g, a heavy ball m <- beta m + g: the same direction,
// the second 1/(1 - beta) times the first. AdamW's exp_avg after t steps from zero is (1 - beta1^t)
// times a weighted mean of gradients, so exp_avg / (1 - beta1^t) is in the units of an EMA.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <utility>

#include "csrc/formats/format_error.h"
#include "zero3/convert/optimizer_facts.h"
#include "zero3/convert/optimizer_plan.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/verbs.h"
#include "zero3/convert/write_universal.h"
#include "zero3/convert/write_zero3.h"

namespace zeromuon::convert {
namespace {

using formats::ElementType;
using formats::kNoNode;
using formats::NodeId;
using formats::NodeKind;
using formats::PickleGraph;
using formats::TorchFile;
using formats::TorchFileWriter;

enum class Target : uint8_t { kZeroMuon, kAdamW };

Target parse_target(const std::string& name) {
  if (name == "ZeroMuon" || name == "muon") return Target::kZeroMuon;
  if (name == "AdamW" || name == "adamw") return Target::kAdamW;
  throw_value_error("to: expected ZeroMuon or AdamW, got \"" + name + "\"");
}

class ConvertedOptimizer : public OptimizerPlan {
 public:
  ConvertedOptimizer(const Checkpoint& source, const ConvertOptimizerOptions& options)
      : source_(source),
        target_(parse_target(options.to)),
        hyper_(hyper_of(source, options.numbers)),
        roles_(target_ == Target::kZeroMuon || source.optimizer != "AdamW"
                   ? roles_of(source, options.roles)
                   : std::vector<TensorRole>(source.tensors.size(), TensorRole::kAdamW)) {
    choose_kind(options.momentum_kind);
    require(target_ != Target::kAdamW || source.optimizer != "AdamW", source.path,
            ": this is an AdamW checkpoint already");
    require(source.optimizer == "AdamW" || source.optimizer == "ZeroMuon" ||
                source.optimizer == "Muon (DeepSpeed)",
            source.path, ": expected the states of AdamW, ZeroMuon or DeepSpeed's Muon, got \"",
            source.optimizer, "\"");
    const auto said = source.facts.find("optimizer_step");
    step_ = said == source.facts.end() ? 0 : std::strtoll(said->second.c_str(), nullptr, 10);
    make_groups();
    states_.resize(source.tensors.size());
    for (const auto& group : groups_) {
      for (const int t : group) plan(source.tensors[t], roles_[t], states_[t]);
    }
  }

  const std::vector<std::vector<int>>& groups() const override { return groups_; }
  const States& states(int tensor) const override { return states_.at(tensor); }

  void add_scalars(TorchFileWriter& writer, int, const FlatGroup& group,
                   NodeId state) const override {
    writer.graph().set(state, "step", step_node(writer, step_of(group)));
  }

  NodeId state_dict(TorchFileWriter& writer, int, const std::vector<FlatGroup>& groups,
                    NodeId state) const override {
    PickleGraph& graph = writer.graph();
    std::vector<NodeId> list;
    for (size_t g = 0; g < groups_.size(); ++g) {
      std::vector<NodeId> numbers;
      for (size_t i = 0; i < groups.size(); ++i) {
        if (groups[i].param_group == static_cast<int>(g))
          numbers.push_back(graph.integer(static_cast<int64_t>(i)));
      }
      const NodeId group = target_ == Target::kAdamW ? adamw_group(graph) : muon_group(graph);
      graph.set(group, "params", graph.sequence(NodeKind::kList, std::move(numbers)));
      list.push_back(group);
    }
    const NodeId out = graph.dict();
    graph.set(out, "state", state);
    if (target_ == Target::kZeroMuon) {
      const NodeId entry = entry_node(graph);
      graph.set(list.at(0), "zeromuon", entry);
      graph.set(out, "zeromuon", entry);
    }
    graph.set(out, "param_groups", graph.sequence(NodeKind::kList, std::move(list)));
    return out;
  }

  // Lists with one value per parameter group get the first group's for each.
  NodeId scheduler(TorchFileWriter& writer, const TorchFile& file) const override {
    const PickleGraph& from = file.graph();
    const NodeId old = from.get(file.root(), "lr_scheduler");
    if (old == kNoNode || !from.is_dict(old)) return kNoNode;
    PickleGraph& graph = writer.graph();
    const NodeId out = graph.dict();
    for (const auto& [key, value] : from.dict_items(old)) {
      static const std::set<std::string_view> kPerGroup = {
          "base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "org_lrs", "delta_lrs"};
      const auto& items = from.items(value);
      NodeId node = writer.copy_of(file, value);
      if (kPerGroup.contains(from.as_text(key)) && !items.empty()) {
        const std::vector<NodeId> same(groups_.size(), writer.copy_of(file, items[0]));
        node = graph.sequence(NodeKind::kList, same);
      }
      graph.mutable_dict_items(out).emplace_back(writer.copy_of(file, key), node);
    }
    return out;
  }

  std::vector<std::string> notes() const {
    std::vector<std::string> out;
    if (target_ == Target::kZeroMuon) {
      out.push_back(
          concat("learning rate: lr ", hyper_.lr, ", adam_lr ", hyper_.adam_lr, advice_on_rate()));
      out.push_back("the momentum is " + kind_ + " with decay " + concat(hyper_.momentum) +
                    ": set momentum_kind and momentum so");
      if (source_.optimizer == "AdamW") {
        out.push_back("reset: the second moments of the Muon parameters are gone; Muon has none");
      }
    } else {
      out.push_back(concat("learning rate: ", hyper_.adam_lr,
                           "; begin with a warm-up of a few hundred steps"));
      out.push_back(
          "reset: step and exp_avg_sq where a Muon parameter is in the sub-group; Muon has "
          "no second moment. exp_avg is the momentum");
    }
    if (source_.sub_groups.size() > groups_.size()) {
      out.push_back(concat("parameter groups: ", groups_.size(),
                           target_ == Target::kAdamW
                               ? ", with all parameters; a run with others does not load it"
                               : ", muon and adamw, as zeromuon.param_groups(model) makes them"));
    }
    out.push_back("set \"type\" of the optimizer in the DeepSpeed configuration to \"" +
                  std::string(target_ == Target::kAdamW ? "AdamW" : "ZeroMuon") + "\"");
    return out;
  }

 private:
  const char* advice_on_rate() const {
    if (source_.optimizer == "ZeroMuon") return ", as they were: the update has no unit";
    return source_.optimizer == "AdamW"
               ? ": an AdamW learning rate stays right with the default scale=\"match_rms_adamw\""
               : ": right for scale=\"original\"; with the default scale=\"match_rms_adamw\" take "
                 "a "
                 "good AdamW value";
  }

  void choose_kind(const std::string& asked) {
    require(asked.empty() || asked == "ema" || asked == "heavy_ball",
            "momentum_kind: expected ema or heavy_ball, got \"", asked, "\"");
    require(asked.empty() || target_ == Target::kZeroMuon,
            "momentum_kind: AdamW has none; leave it out");
    kind_ = !asked.empty() ? asked : source_.momentum_kind.empty() ? "ema" : source_.momentum_kind;
  }

  void make_groups() {
    const std::vector<int> order = model_order(source_);
    if (target_ == Target::kAdamW) {
      groups_ = {order};
      return;
    }
    for (const TensorRole role : {TensorRole::kMuon, TensorRole::kAdamW}) {
      std::vector<int> group;
      std::copy_if(order.begin(), order.end(), std::back_inserter(group),
                   [&](int t) { return roles_[t] == role; });
      if (!group.empty()) groups_.push_back(std::move(group));
    }
    require(roles_[groups_.at(0).at(0)] == TensorRole::kMuon,
            "roles: none of the parameters is muon; there is nothing to convert");
  }

  PlannedState copied(const NamedTensor& tensor, const char* name, double factor) const {
    const auto found = tensor.states.find(name);
    if (found == tensor.states.end()) {
      formats::throw_format_error(source_.folder, -1,
                                  concat("the state ", name, " of \"", tensor.name, "\""), "none",
                                  "the checkpoint has no optimizer states to convert");
    }
    return {PlannedState::Fill::kSource, found->second, factor, ElementType::kFloat32};
  }

  static PlannedState filled(PlannedState::Fill fill) {
    return {fill, {}, 1, ElementType::kFloat32};
  }

  // What turns the source's momentum into an EMA, see Note [Units of a momentum].
  double to_ema() const {
    if (source_.optimizer == "AdamW") {
      return step_ > 0 ? 1 / (1 - std::pow(hyper_.beta1, static_cast<double>(step_))) : 1;
    }
    return source_.momentum_kind == "heavy_ball" ? 1 - hyper_.momentum : 1;
  }

  void plan(const NamedTensor& tensor, TensorRole role, States& out) const {
    if (role != TensorRole::kMuon) {
      out["exp_avg"] = copied(tensor, "exp_avg", 1);
      out["exp_avg_sq"] = copied(tensor, "exp_avg_sq", 1);
      return;
    }
    const char* name = source_.optimizer == "Muon (DeepSpeed)" ? "momentum_buffer" : "exp_avg";
    const bool keeps = target_ == Target::kZeroMuon && kind_ == source_.momentum_kind;
    const double from_ema =
        target_ == Target::kZeroMuon && kind_ == "heavy_ball" ? 1 / (1 - hyper_.momentum) : 1;
    out["exp_avg"] = copied(tensor, name, keeps ? 1 : to_ema() * from_ema);
    out["exp_avg_sq"] = filled(target_ == Target::kZeroMuon ? PlannedState::Fill::kOneZero
                                                            : PlannedState::Fill::kZeros);
  }

  int64_t step_of(const FlatGroup& group) const {
    const bool reset = target_ == Target::kAdamW &&
                       std::any_of(group.tensors.begin(), group.tensors.end(),
                                   [&](int t) { return roles_[t] == TensorRole::kMuon; });
    return reset ? 0 : step_;
  }

  // AdamW gets a tensor, as torch's own keeps it: after a universal load it takes nothing else.
  NodeId step_node(TorchFileWriter& writer, int64_t step) const {
    if (target_ != Target::kAdamW) return writer.graph().integer(step);
    const auto value = static_cast<float>(step);
    std::string content(sizeof value, '\0');
    std::memcpy(content.data(), &value, sizeof value);
    return writer.add_constant(ElementType::kFloat32, {}, std::move(content));
  }

  NodeId betas_node(PickleGraph& graph) const {
    return graph.sequence(NodeKind::kTuple, {graph.real(hyper_.beta1), graph.real(hyper_.beta2)});
  }

  // The keys of torch's AdamW and of DeepSpeed's.
  NodeId adamw_group(PickleGraph& graph) const {
    const NodeId group = graph.dict();
    graph.set(group, "lr", graph.real(hyper_.adam_lr * hyper_.lr_now));
    if (hyper_.scheduled) graph.set(group, "initial_lr", graph.real(hyper_.adam_lr));
    graph.set(group, "betas", betas_node(graph));
    graph.set(group, "eps", graph.real(hyper_.eps));
    graph.set(group, "weight_decay", graph.real(hyper_.weight_decay));
    graph.set(group, "bias_correction", graph.boolean(true));
    for (const char* key : {"amsgrad", "maximize", "capturable", "differentiable"}) {
      graph.set(group, key, graph.boolean(false));
    }
    for (const char* key : {"foreach", "fused"}) graph.set(group, key, graph.none());
    graph.set(group, "decoupled_weight_decay", graph.boolean(true));
    return group;
  }

  NodeId muon_group(PickleGraph& graph) const {
    const NodeId group = graph.dict();
    graph.set(group, "lr", graph.real(hyper_.lr * hyper_.lr_now));
    if (hyper_.scheduled) graph.set(group, "initial_lr", graph.real(hyper_.lr));
    graph.set(group, "weight_decay", graph.real(hyper_.weight_decay));
    return group;
  }

  // The entry that python/zeromuon/state.py reads.
  NodeId entry_node(PickleGraph& graph) const {
    const NodeId roles = graph.dict(), blocks = graph.dict(), entry = graph.dict();
    for (const auto& group : groups_) {
      for (const int t : group) {
        const NamedTensor& tensor = source_.tensors[t];
        graph.set(roles, tensor.name, graph.string(name_of(roles_[t])));
        if (roles_[t] != TensorRole::kMuon) continue;
        const int64_t rows = tensor.value.shape.at(0);
        const int64_t columns = rows > 0 ? tensor.value.numel() / rows : 0;
        const NodeId block = graph.sequence(
            NodeKind::kList,
            {graph.integer(0), graph.integer(rows), graph.integer(0), graph.integer(columns)});
        graph.set(blocks, tensor.name, graph.sequence(NodeKind::kList, {block}));
      }
    }
    graph.set(entry, "format", graph.integer(1));
    graph.set(entry, "roles", roles);
    graph.set(entry, "blocks", blocks);
    graph.set(entry, "options", options_node(graph));
    std::vector<NodeId> groups;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const NodeId group = muon_group(graph);
      graph.set(group, "adam_ratio", graph.real(hyper_.lr != 0 ? hyper_.adam_lr / hyper_.lr : 1));
      groups.push_back(group);
    }
    graph.set(entry, "groups", graph.sequence(NodeKind::kList, std::move(groups)));
    return entry;
  }

  // Those of the source where it has them, so that a resumed run is warned of what differs.
  NodeId options_node(PickleGraph& graph) const {
    const NodeId options = graph.dict();
    graph.set(options, "lr", graph.real(hyper_.lr));
    graph.set(options, "adam_lr",
              hyper_.adam_lr == hyper_.lr ? graph.none() : graph.real(hyper_.adam_lr));
    graph.set(options, "momentum", graph.real(hyper_.momentum));
    graph.set(options, "momentum_kind", graph.string(kind_));
    graph.set(options, "weight_decay", graph.real(hyper_.weight_decay));
    graph.set(
        options, "betas",
        graph.sequence(NodeKind::kList, {graph.real(hyper_.beta1), graph.real(hyper_.beta2)}));
    graph.set(options, "eps", graph.real(hyper_.eps));
    if (source_.optimizer == "Muon (DeepSpeed)")
      graph.set(options, "scale", graph.string("original"));
    return options;
  }

  const Checkpoint& source_;
  Target target_;
  Hyper hyper_;
  std::vector<TensorRole> roles_;
  std::string kind_;
  int64_t step_ = 0;
  std::vector<std::vector<int>> groups_;
  std::vector<States> states_;
};

std::string describe(const ConvertOptimizerOptions& options) {
  std::string out =
      concat("convert-optimizer ", options.to, " ", options.momentum_kind, " ", options.tag);
  for (const auto& [name, value] : options.numbers) out += concat(" ", name, "=", value);
  for (const auto& [name, role] : options.roles) out += "\n" + name + " " + role;
  return out;
}

}  // namespace

OutputReport convert_optimizer(const ConvertOptimizerOptions& options) {
  const Checkpoint source = open_checkpoint(options.source.path, options.source.tag);
  check_verb(source, "convert-optimizer");
  const ConvertedOptimizer plan(source, options);
  OutputReport report;
  report.notes = plan.notes();
  if (source.kind == Kind::kUniversal) {
    write_universal(source, plan, options.output, describe(options), options.run, report);
    return report;
  }
  const std::string tag = options.tag.empty() ? source.tag : options.tag;
  write_zero3(
      source, plan,
      {options.output, tag, source.world_size, sub_group_size_of(source), describe(options)},
      options.run, report);
  return report;
}

}  // namespace zeromuon::convert
