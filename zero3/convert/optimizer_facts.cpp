#include "zero3/convert/optimizer_facts.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>
#include <utility>

#include "csrc/formats/format_error.h"
#include "zero3/convert/optimizer_plan.h"

namespace zeromuon::convert {
namespace {

using formats::kNoNode;
using formats::NodeId;
using formats::PickleGraph;
using formats::TorchFile;

std::string option_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// Reads the hyper-parameters of the source, and lets `numbers` replace them.
class HyperReader {
 public:
  HyperReader(const Checkpoint& source, const std::map<std::string, double>& numbers)
      : file_(optimizer_file(source, 0)), graph_(file_.graph()) {
    const NodeId state_dict = optimizer_state_dict(file_);
    groups_ = graph_.get(state_dict, "param_groups");
    entry_ = graph_.get(state_dict, "zeromuon");
    if (entry_ == kNoNode && groups_ != kNoNode && !graph_.items(groups_).empty()) {
      entry_ = graph_.get(graph_.items(groups_)[0], "zeromuon");
    }
    read_groups();
    read_entry();
    const std::pair<const char*, double*> fields[] = {{"lr", &out_.lr},
                                                      {"adam_lr", &out_.adam_lr},
                                                      {"momentum", &out_.momentum},
                                                      {"beta1", &out_.beta1},
                                                      {"beta2", &out_.beta2},
                                                      {"eps", &out_.eps},
                                                      {"weight_decay", &out_.weight_decay}};
    for (const auto& [name, value] : numbers) {
      const auto field = std::find_if(std::begin(fields), std::end(fields),
                                      [&, n = name](const auto& f) { return n == f.first; });
      require(field != std::end(fields), "numbers: unknown name \"", name,
              "\", expected lr, adam_lr, momentum, beta1, beta2, eps or weight_decay");
      require(std::isfinite(value) && value >= 0, option_of(name),
              ": expected a finite number of at least 0, got ", value);
      *field->second = value;
      if (name == "lr") out_.lr_now = 1;
    }
    const std::pair<const char*, double> decays[] = {
        {"momentum", out_.momentum}, {"beta1", out_.beta1}, {"beta2", out_.beta2}};
    for (const auto& [name, value] : decays) {
      require(value >= 0 && value < 1, option_of(name), ": expected a number in [0, 1), got ",
              value);
    }
  }

  const Hyper& hyper() const { return out_; }

 private:
  // The first group that is AdamW's says its betas; the first of all the learning rate.
  void read_groups() {
    if (groups_ == kNoNode) return;
    bool first = true;
    for (const NodeId group : graph_.items(groups_)) {
      const bool muon = graph_.as_bool(or_none(graph_.get(group, "use_muon")), false);
      const double now = number(group, "lr", out_.lr), lr = number(group, "initial_lr", now);
      if (first) {
        out_.lr = lr;
        out_.lr_now = lr > 0 ? now / lr : 1;
        out_.scheduled = graph_.get(group, "initial_lr") != kNoNode;
        now_ = now;
      }
      if (!muon) out_.adam_lr = lr;
      out_.weight_decay = first ? number(group, "weight_decay", 0) : out_.weight_decay;
      out_.momentum = number(group, "momentum", out_.momentum);
      out_.eps = number(group, "eps", out_.eps);
      read_betas(graph_.get(group, "betas"));
      first = false;
    }
  }

  void read_entry() {
    const NodeId options = graph_.get(entry_, "options");
    if (options == kNoNode) return;
    out_.lr = number(options, "lr", out_.lr);
    if (out_.lr > 0) out_.lr_now = now_ / out_.lr;
    out_.adam_lr = number(options, "adam_lr", out_.lr);
    out_.momentum = number(options, "momentum", out_.momentum);
    out_.weight_decay = number(options, "weight_decay", out_.weight_decay);
    out_.eps = number(options, "eps", out_.eps);
    read_betas(graph_.get(options, "betas"));
  }

  void read_betas(NodeId betas) {
    if (betas == kNoNode || graph_.items(betas).size() != 2) return;
    out_.beta1 = graph_.as_real(graph_.items(betas)[0], out_.beta1);
    out_.beta2 = graph_.as_real(graph_.items(betas)[1], out_.beta2);
  }

  NodeId or_none(NodeId node) const { return node == kNoNode ? graph_.none() : node; }
  double number(NodeId dict, const char* key, double otherwise) const {
    return graph_.as_real(or_none(graph_.get(dict, key)), otherwise);
  }

  const TorchFile& file_;
  const PickleGraph& graph_;
  NodeId groups_ = kNoNode, entry_ = kNoNode;
  double now_ = 0;  // the first group's learning rate
  Hyper out_;
};

}  // namespace

Hyper hyper_of(const Checkpoint& source, const std::map<std::string, double>& numbers) {
  return HyperReader(source, numbers).hyper();
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
  for (const auto& [name, number] : numbers) {
    formats::throw_format_error(file.path(), -1, "\"" + name + "\" in the model's state dict",
                                "none", formats::kDamaged);
  }
  return order;
}

std::vector<TensorRole> roles_of(const Checkpoint& source,
                                 std::map<std::string, std::string> given) {
  for (const auto& [alias, stored] : source.aliases) {
    const auto found = given.find(alias);
    if (found != given.end()) given.emplace(stored, found->second);
  }
  std::vector<TensorRole> out;
  const bool own = source.optimizer == "ZeroMuon" || source.optimizer == "Muon (DeepSpeed)";
  std::set<std::string> missing;
  for (const NamedTensor& tensor : source.tensors) {
    const auto found = given.find(tensor.name);
    TensorRole role = own ? tensor.role : TensorRole::kUnknown;
    if (found != given.end()) {
      require(found->second == "muon" || found->second == "adamw", "roles: \"", tensor.name,
              "\" is \"", found->second, "\", expected muon or adamw");
      role = found->second == "muon" ? TensorRole::kMuon : TensorRole::kAdamW;
      require(!own || role == tensor.role, "roles: \"", tensor.name, "\" is ", found->second,
              ", but ", name_of(tensor.role), " in the checkpoint: its state fits no other role");
    }
    require(role != TensorRole::kMuon || tensor.value.shape.size() >= 2, "roles: \"", tensor.name,
            "\" has ", tensor.value.shape.size(), " dimensions; Muon takes matrices");
    if (tensor.sub_group >= 0 && role == TensorRole::kUnknown) missing.insert(tensor.name);
    out.push_back(role);
  }
  require(missing.empty(), source.path,
          ": an AdamW checkpoint does not say which parameters get "
          "Muon, and the roles given leave out ",
          missing.size(), " (the first is \"", missing.empty() ? "" : *missing.begin(),
          "\"); pass --roles FILE, written by zeromuon.param_groups(model).save(FILE), or --model "
          "PATH");
  return out;
}

}  // namespace zeromuon::convert
