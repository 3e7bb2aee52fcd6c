#include "zero3/convert/optimizer_facts.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>
#include <utility>

#include "zero3/convert/entry.h"
#include "zero3/convert/optimizer_plan.h"

namespace zeromuon::convert {
namespace {

std::string option_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// Reads the hyper-parameters of the source.
class HyperReader {
 public:
  explicit HyperReader(const Checkpoint& source)
      : file_(optimizer_file(source, 0)), graph_(file_.graph()) {
    const NodeId state_dict = optimizer_state_dict(file_);
    const std::vector<NodeId> groups = graph_.items(graph_.get(state_dict, "param_groups"));
    read_groups(groups);
    const NodeId entry = find_entry(file_, state_dict);
    read_options(graph_.get(entry, "options"));
    if (needs(file_, entry, kEntrySchema.rates_in_groups())) read_own_groups(groups);
  }

  const Hyper& hyper() const { return out_; }

 private:
  // The first of all groups says the learning rate, the last that is AdamW's its own.
  void read_groups(const std::vector<NodeId>& groups) {
    if (!groups.empty()) read_first(groups[0]);
    for (const NodeId group : groups) {
      const bool muon = graph_.as_bool(graph_.get(group, "use_muon"), false);
      if (!muon) read_rate(group, out_.adam_lr, out_.adam_lr_now);
      out_.momentum = number(group, "momentum", out_.momentum);
      out_.eps = number(group, "eps", out_.eps);
      read_betas(graph_.get(group, "betas"));
    }
  }

  void read_first(NodeId group) {
    read_rate(group, out_.lr, out_.lr_now);
    out_.scheduled = graph_.get(group, "initial_lr") != kNoNode;
    out_.weight_decay = number(group, "weight_decay", 0);
  }

  void read_rate(NodeId group, double& configured, double& now) const {
    now = number(group, "lr", configured);
    configured = number(group, "initial_lr", now);
  }

  // Those of the `zeromuon` entry. The groups of the first ones have Muon's rate for AdamW, too.
  void read_options(NodeId options) {
    if (options == kNoNode) return;
    out_.lr = number(options, "lr", out_.lr);
    out_.adam_lr = number(options, "adam_lr", out_.lr);
    out_.adam_lr_now = out_.lr > 0 ? out_.adam_lr * (out_.lr_now / out_.lr) : out_.adam_lr;
    out_.nesterov = graph_.as_bool(graph_.get(options, "nesterov"), out_.nesterov);
    out_.momentum = number(options, "momentum", out_.momentum);
    out_.weight_decay = number(options, "weight_decay", out_.weight_decay);
    out_.eps = number(options, "eps", out_.eps);
    read_betas(graph_.get(options, "betas"));
  }

  // What each role's last group says now, in place of the options. Those with betas are AdamW's.
  void read_own_groups(const std::vector<NodeId>& groups) {
    for (const NodeId group : groups) {
      const bool muon = graph_.get(group, "betas") == kNoNode;
      (muon ? out_.lr_now : out_.adam_lr_now) = number(group, "lr", 0);
      out_.momentum = number(group, "momentum", out_.momentum);
      out_.nesterov = graph_.as_bool(graph_.get(group, "nesterov"), out_.nesterov);
      out_.eps = number(group, "eps", out_.eps);
      read_betas(graph_.get(group, "betas"));
    }
  }

  void read_betas(NodeId betas) {
    if (graph_.items(betas).size() != 2) return;
    out_.beta1 = graph_.as_real(graph_.items(betas)[0], out_.beta1);
    out_.beta2 = graph_.as_real(graph_.items(betas)[1], out_.beta2);
  }

  double number(NodeId dict, const char* key, double otherwise) const {
    return graph_.as_real(graph_.get(dict, key), otherwise);
  }

  const TorchFile& file_;
  const PickleGraph& graph_;
  Hyper out_;
};

// `numbers` in place of what the source says. Raises ValueError for unknown names and for values
// out of range.
void replace_numbers(Hyper& hyper, const std::map<std::string, double>& numbers) {
  const std::map<std::string, double*> fields = {{"lr", &hyper.lr},
                                                 {"adam_lr", &hyper.adam_lr},
                                                 {"momentum", &hyper.momentum},
                                                 {"beta1", &hyper.beta1},
                                                 {"beta2", &hyper.beta2},
                                                 {"eps", &hyper.eps},
                                                 {"weight_decay", &hyper.weight_decay}};
  for (const auto& [name, value] : numbers) {
    require(fields.contains(name), "numbers: unknown name \"", name,
            "\", expected lr, adam_lr, momentum, beta1, beta2, eps or weight_decay");
    require(std::isfinite(value) && value >= 0, option_of(name),
            ": expected a finite number of at least 0, got ", value);
    *fields.at(name) = value;
    if (name == "lr") hyper.lr_now = value;
    if (name == "lr" || name == "adam_lr") hyper.adam_lr_now = hyper.adam_lr;
  }
  for (const char* name : {"momentum", "beta1", "beta2"}) {
    const double value = *fields.at(name);
    require(value >= 0 && value < 1, option_of(name), ": expected a number in [0, 1), got ", value);
  }
}

// As its state says, or as it was given.
TensorRole role_of(const Checkpoint& source, const NamedTensor& tensor,
                   const std::map<std::string, std::string>& given) {
  const bool own =
      source.optimizer == Optimizer::kZeroMuon || source.optimizer == Optimizer::kDeepSpeedMuon;
  const auto found = given.find(tensor.name);
  if (found == given.end()) return own ? tensor.role : TensorRole::kUnknown;
  const std::string& name = found->second;
  require(name == "muon" || name == "adamw", "roles: \"", tensor.name, "\" is \"", name,
          "\", expected muon or adamw");
  const TensorRole role = name == "muon" ? TensorRole::kMuon : TensorRole::kAdamW;
  require(!own || role == tensor.role || role == TensorRole::kMuon, "roles: \"", tensor.name,
          "\" is ", name, ", but ", name_of(tensor.role),
          " in the checkpoint: its state fits no other role");
  return role;
}

}  // namespace

Hyper hyper_of(const Checkpoint& source, const std::map<std::string, double>& numbers) {
  Hyper out = HyperReader(source).hyper();
  replace_numbers(out, numbers);
  return out;
}

std::vector<int> model_order(const Checkpoint& source) {
  const TorchFile& file = *source.model_files.at(0);
  std::unordered_map<std::string, int> numbers;
  for (size_t i = 0; i < source.tensors.size(); ++i) {
    if (source.tensors[i].sub_group >= 0) numbers[source.tensors[i].name] = static_cast<int>(i);
  }
  std::vector<int> order;
  const PickleGraph& graph = file.graph();
  for (const auto& [key, value] : graph.dict_items(graph.get(file.root(), "module"))) {
    const auto found = numbers.find(std::string(graph.as_text(key)));
    if (found == numbers.end()) continue;
    order.push_back(found->second);
    numbers.erase(found);
  }
  if (numbers.empty()) return order;
  throw_format_error(file.path(), -1,
                     "\"" + numbers.begin()->first + "\" in the model's state dict", "none",
                     kDamaged);
}

std::vector<TensorRole> roles_of(const Checkpoint& source,
                                 std::map<std::string, std::string> given) {
  for (const auto& [alias, stored] : source.aliases) {
    const auto found = given.find(alias);
    if (found != given.end()) given.emplace(stored, found->second);
  }
  std::vector<TensorRole> out;
  std::set<std::string> missing;
  for (const NamedTensor& tensor : source.tensors) {
    out.push_back(role_of(source, tensor, given));
    require(out.back() != TensorRole::kMuon || tensor.value.shape.size() >= 2, "roles: \"",
            tensor.name, "\" has ", tensor.value.shape.size(), " dimensions; Muon takes matrices");
    if (tensor.sub_group >= 0 && out.back() == TensorRole::kUnknown) missing.insert(tensor.name);
  }
  require(missing.empty(), source.path,
          ": an AdamW checkpoint does not say which parameters get Muon, and the roles given leave "
          "out ",
          missing.size(), " (the first is \"", missing.empty() ? "" : *missing.begin(),
          "\"); pass --roles FILE, written by zeromuon.param_groups(model).save(FILE), or --model "
          "PATH");
  return out;
}

}  // namespace zeromuon::convert
