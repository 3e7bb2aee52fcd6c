// AdamW <-> Muon, and the two kinds of momentum.
//
// Note [Units of a momentum]
// An EMA momentum is m <- beta m + (1 - beta) g, a heavy ball m <- beta m + g: the same direction,
// the second 1/(1 - beta) times the first. AdamW's exp_avg after t steps from zero is (1 - beta1^t)
// times a weighted mean of gradients, so exp_avg / (1 - beta1^t) is in the units of an EMA.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <set>
#include <utility>

#include "zero3/convert/entry.h"
#include "zero3/convert/optimizer_facts.h"
#include "zero3/convert/optimizer_plan.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/verbs.h"
#include "zero3/convert/write_formats.h"

namespace zeromuon::convert {
namespace {

enum class Target : uint8_t { kZeroMuon, kAdamW };

Target parse_target(const std::string& name) {
  if (name == "ZeroMuon" || name == "muon") return Target::kZeroMuon;
  if (name == "AdamW" || name == "adamw") return Target::kAdamW;
  throw_value_error("to: expected ZeroMuon or AdamW, got \"" + name + "\"");
}

void check_source(const Checkpoint& source, Target target) {
  require(target != Target::kAdamW || source.optimizer != Optimizer::kAdamW, source.path,
          ": this is an AdamW checkpoint already");
  require(source.optimizer == Optimizer::kAdamW || source.optimizer == Optimizer::kZeroMuon ||
              source.optimizer == Optimizer::kDeepSpeedMuon,
          source.path, ": expected the states of AdamW, ZeroMuon or DeepSpeed's Muon, got \"",
          source.optimizer_name(), "\"");
}

class ConvertedOptimizer : public OptimizerPlan {
 public:
  ConvertedOptimizer(const Checkpoint& source, const ConvertOptimizerOptions& options)
      : OptimizerPlan(source),
        target_(parse_target(options.to)),
        hyper_(hyper_of(source, options.numbers)),
        roles_(target_ == Target::kZeroMuon || source.optimizer != Optimizer::kAdamW
                   ? roles_of(source, options.roles)
                   : std::vector<TensorRole>(source.tensors.size(), TensorRole::kAdamW)),
        step_(source.facts.optimizer_step.value_or(0)) {
    choose_kind(options.momentum_kind);
    check_source(source, target_);
    make_groups();
    for (const auto& group : groups_) {
      for (const int t : group) plan(source.tensors[t], roles_[t], states_[t]);
    }
  }

  void add_scalars(TorchFileWriter& writer, int, const SubGroup& group,
                   NodeId state) const override {
    writer.graph().set(state, "step", step_node(writer, step_of(group)));
  }

  NodeId state_dict(TorchFileWriter& writer, int, const std::vector<SubGroup>& groups,
                    NodeId state) const override {
    PickleGraph& graph = writer.graph();
    std::vector<NodeId> list;
    for (size_t g = 0; g < groups_.size(); ++g) {
      list.push_back(target_ == Target::kAdamW ? torch_adamw_group(graph) : group_of(graph, g));
      graph.set(list.back(), "params", params_node(graph, groups, static_cast<int>(g)));
    }
    const NodeId out = graph.dict();
    graph.set(out, "state", state);
    if (target_ == Target::kZeroMuon) {
      const NodeId entry = entry_node(writer);
      graph.set(list.at(0), kEntrySchema.key, entry);
      graph.set(out, kEntrySchema.key, entry);
    }
    graph.set(out, "param_groups", graph.sequence(NodeKind::kList, std::move(list)));
    return out;
  }

  // Lists with one value per parameter group get the first group's for each, AdamW's in its ratio.
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
        node = per_group(writer, file, items[0]);
      }
      graph.mutable_dict_items(out).emplace_back(writer.copy_of(file, key), node);
    }
    return out;
  }

  NodeId per_group(TorchFileWriter& writer, const TorchFile& file, NodeId first) const {
    PickleGraph& graph = writer.graph();
    const double rate = file.graph().as_real(first, std::nan(""));
    std::vector<NodeId> values;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const bool scaled = !std::isnan(rate) && hyper_.lr > 0 && !is_muon(g);
      values.push_back(scaled ? graph.real(rate * (hyper_.adam_lr / hyper_.lr))
                              : writer.copy_of(file, first));
    }
    return graph.sequence(NodeKind::kList, std::move(values));
  }

  std::vector<std::string> notes() const {
    const bool muon = target_ == Target::kZeroMuon;
    std::vector<std::string> out = muon ? notes_of_zeromuon() : notes_of_adamw();
    if (source_.sub_groups.size() > groups_.size()) {
      out.push_back(concat("parameter groups: ", groups_.size(),
                           muon ? ", muon and adamw, as zeromuon.param_groups(model) makes them"
                                : ", with all parameters; a run with others does not load it"));
    }
    out.push_back(concat("set \"type\" of the optimizer in the DeepSpeed configuration to \"",
                         muon ? "ZeroMuon" : "AdamW", "\""));
    return out;
  }

 private:
  std::vector<std::string> notes_of_zeromuon() const {
    std::vector<std::string> out = {
        concat("learning rate: lr ", hyper_.lr, ", adam_lr ", hyper_.adam_lr, advice_on_rate()),
        concat("the momentum is ", kind_, " with decay ", hyper_.momentum,
               ": set momentum_kind and momentum so")};
    const auto loses_moments = [&](int t) {
      return roles_[t] == TensorRole::kMuon && was_adamw(source_.tensors[t]);
    };
    const auto& muon = groups_.at(0);
    if (std::any_of(muon.begin(), muon.end(), loses_moments)) {
      out.push_back("reset: the second moments of the Muon parameters are gone; Muon has none");
    }
    return out;
  }

  std::vector<std::string> notes_of_adamw() const {
    return {
        concat("learning rate: ", hyper_.adam_lr, "; begin with a warm-up of a few hundred steps"),
        "reset: step and exp_avg_sq where a Muon parameter is in the sub-group; Muon has no "
        "second moment. exp_avg is the momentum"};
  }

  const char* advice_on_rate() const {
    if (source_.optimizer == Optimizer::kZeroMuon) return ", as they were: the update has no unit";
    return source_.optimizer == Optimizer::kAdamW
               ? ": an AdamW learning rate stays right with the default scale=\"match_rms_adamw\""
               : ": right for scale=\"original\"; with the default scale=\"match_rms_adamw\" take "
                 "a good AdamW value";
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
      throw_format_error(source_.folder, -1,
                         concat("the state ", name, " of \"", tensor.name, "\""), "none",
                         "the checkpoint has no optimizer states to convert");
    }
    return {PlannedState::Fill::kSource, found->second, factor, ElementType::kFloat32};
  }

  static PlannedState filled(PlannedState::Fill fill) {
    return {fill, {}, 1, ElementType::kFloat32};
  }

  // Whether its state in the source is AdamW's.
  bool was_adamw(const NamedTensor& tensor) const {
    return source_.optimizer == Optimizer::kAdamW || tensor.role == TensorRole::kAdamW;
  }

  // What turns the source's momentum into an EMA, see Note [Units of a momentum].
  double to_ema(const NamedTensor& tensor) const {
    if (was_adamw(tensor)) {
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
    const bool deepspeeds = source_.optimizer == Optimizer::kDeepSpeedMuon && !was_adamw(tensor);
    const char* name = deepspeeds ? "momentum_buffer" : "exp_avg";
    const bool keeps =
        target_ == Target::kZeroMuon && kind_ == source_.momentum_kind && !was_adamw(tensor);
    const double from_ema =
        target_ == Target::kZeroMuon && kind_ == "heavy_ball" ? 1 / (1 - hyper_.momentum) : 1;
    out["exp_avg"] = copied(tensor, name, keeps ? 1 : to_ema(tensor) * from_ema);
    out["exp_avg_sq"] = filled(target_ == Target::kZeroMuon ? PlannedState::Fill::kOneZero
                                                            : PlannedState::Fill::kZeros);
  }

  int64_t step_of(const SubGroup& group) const {
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

  NodeId betas_node(PickleGraph& graph, NodeKind kind) const {
    return graph.sequence(kind, {graph.real(hyper_.beta1), graph.real(hyper_.beta2)});
  }

  bool is_muon(size_t group) const { return roles_[groups_[group][0]] == TensorRole::kMuon; }

  // A group of ZeroMuon.
  NodeId group_of(PickleGraph& graph, size_t g, NodeKind pair = NodeKind::kTuple) const {
    return is_muon(g) ? muon_group(graph) : adamw_group(graph, pair);
  }

  NodeId rates(PickleGraph& graph, double now, double configured) const {
    const NodeId group = graph.dict();
    graph.set(group, "lr", graph.real(now));
    if (hyper_.scheduled) graph.set(group, "initial_lr", graph.real(configured));
    graph.set(group, "weight_decay", graph.real(hyper_.weight_decay));
    return group;
  }

  NodeId muon_group(PickleGraph& graph) const {
    const NodeId group = rates(graph, hyper_.lr_now, hyper_.lr);
    graph.set(group, "momentum", graph.real(hyper_.momentum));
    graph.set(group, "nesterov", graph.boolean(hyper_.nesterov));
    return group;
  }

  NodeId adamw_group(PickleGraph& graph, NodeKind pair) const {
    const NodeId group = rates(graph, hyper_.adam_lr_now, hyper_.adam_lr);
    graph.set(group, "betas", betas_node(graph, pair));
    graph.set(group, "eps", graph.real(hyper_.eps));
    return group;
  }

  // With the keys of torch's AdamW and of DeepSpeed's.
  NodeId torch_adamw_group(PickleGraph& graph) const {
    const NodeId group = adamw_group(graph, NodeKind::kTuple);
    graph.set(group, "bias_correction", graph.boolean(true));
    for (const char* key : {"amsgrad", "maximize", "capturable", "differentiable"}) {
      graph.set(group, key, graph.boolean(false));
    }
    for (const char* key : {"foreach", "fused"}) graph.set(group, key, graph.none());
    graph.set(group, "decoupled_weight_decay", graph.boolean(true));
    return group;
  }

  NodeId roles_node(PickleGraph& graph) const {
    const NodeId roles = graph.dict();
    for (const auto& group : groups_) {
      for (const int t : group) {
        const NodeId role = graph.string(name_of(roles_[t]));
        graph.set(roles, source_.tensors[t].name, role);
      }
    }
    return roles;
  }

  // On top of `options`, those of the source: a resumed run is warned of what differs.
  void set_options(PickleGraph& graph, NodeId options) const {
    const bool one_rate = hyper_.adam_lr == hyper_.lr;
    graph.set(options, "lr", graph.real(hyper_.lr));
    graph.set(options, "adam_lr", one_rate ? graph.none() : graph.real(hyper_.adam_lr));
    graph.set(options, "momentum", graph.real(hyper_.momentum));
    graph.set(options, "momentum_kind", graph.string(kind_));
    graph.set(options, "weight_decay", graph.real(hyper_.weight_decay));
    graph.set(options, "betas", betas_node(graph, NodeKind::kList));
    graph.set(options, "eps", graph.real(hyper_.eps));
    if (source_.optimizer == Optimizer::kDeepSpeedMuon) {
      graph.set(options, "scale", graph.string("original"));
    }
  }

  NodeId groups_node(PickleGraph& graph) const {
    std::vector<NodeId> groups;
    for (size_t g = 0; g < groups_.size(); ++g) {
      groups.push_back(group_of(graph, g, NodeKind::kList));
    }
    return graph.sequence(NodeKind::kList, std::move(groups));
  }

  // The entry, see entry.h. What the source's own has beside is kept.
  NodeId entry_node(TorchFileWriter& writer) const {
    PickleGraph& graph = writer.graph();
    const TorchFile& file = optimizer_file(source_, 0);
    const NodeId before = find_entry(file, optimizer_state_dict(file));
    const auto kept = [&](const char* field, NodeId otherwise) {
      const NodeId node = file.graph().get(before, field);
      return node == kNoNode ? otherwise : writer.copy_of(file, node);
    };
    const NodeId options = kept("options", graph.dict()), out = graph.dict();
    set_options(graph, options);
    graph.set(out, "format", graph.integer(kEntrySchema.format));
    graph.set(out, "needs",
              graph.sequence(NodeKind::kList, {graph.string(kEntrySchema.rates_in_groups())}));
    graph.set(out, "roles", roles_node(graph));
    graph.set(out, "options", options);
    graph.set(out, "arithmetic", kept("arithmetic", graph.string("not recorded")));
    graph.set(out, "groups", groups_node(graph));
    keep_unknown_fields(writer, file, before, out);
    return out;
  }

  Target target_;
  Hyper hyper_;
  std::vector<TensorRole> roles_;
  int64_t step_;
  std::string kind_;
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
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const NamedTensor& tensor : source.tensors) shapes[tensor.name] = tensor.value.shape;
  for (const auto& [alias, stored] : source.aliases) shapes[alias] = shapes[stored];
  options.model.check(shapes, true);
  const ConvertedOptimizer plan(source, options);
  OutputReport report;
  report.notes = source.warnings;
  std::ranges::copy(plan.notes(), std::back_inserter(report.notes));
  if (source.kind == Kind::kUniversal) {
    write_universal(plan, options.output, describe(options), options.run, report);
    return report;
  }
  const std::string tag = options.tag.empty() ? source.tag : options.tag;
  const int64_t size = source.facts.sub_group_size.value_or(kDefaultSubGroupSize);
  write_zero3(plan, {options.output, tag, source.world_size, size, describe(options)}, options.run,
              report);
  return report;
}

}  // namespace zeromuon::convert
