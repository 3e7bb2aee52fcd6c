#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "csrc/formats/output_file.h"
#include "zero3/convert/crcs.h"
#include "zero3/convert/names.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/read_formats.h"
#include "zero3/convert/write_formats.h"

namespace zeromuon::convert {
namespace {

// What DeepSpeed's loader asks for, by these names.
constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};

class UniversalWriter {
 public:
  UniversalWriter(const OptimizerPlan& plan, const std::string& output, const RunOptions& run)
      : source_(plan.source()),
        plan_(plan),
        output_(fs::path(output).lexically_normal()),
        run_(run),
        groups_(source_.sub_groups) {
    check_new_tag(tag_of_folder(output), "-o");
    if (output_.filename().empty()) output_ = output_.parent_path();
    require(!output_.empty() && output_ != "/", "output: expected the path of a folder");
    // Of an optimizer with other groups, the sub-groups are one for each.
    if (plan.groups() != same_optimizer(source_)->groups()) groups_ = plan.cut_groups(1, INT64_MAX);
  }

  void write(const std::string& what, OutputReport& report) {
    std::vector<PlannedOutput> outputs = parameters();
    const std::string optimizer = (output_ / "zero" / "optimizer_state.pt").string();
    outputs.push_back({optimizer, 0, [=, this] { return open_optimizer(optimizer); }});
    for (size_t rank = 0; rank < source_.model_files.size(); ++rank) {
      const std::string path = (output_ / model_file_name(static_cast<int>(rank))).string();
      outputs.push_back({path, 0, [=, this] { return open_model(path, rank); }});
    }
    if (looks_like_zero3(output_) && !is_universal(output_)) {
      refuse_kind(output_.string(), "a ZeRO-3 checkpoint");
    }
    Journal journal(output_.string(), what, source_, run_, paths_of(outputs));
    require_whole(source_, run_);
    formats::make_folders((output_ / "zero").string());
    write_journalled(std::move(outputs), journal, run_, report);
    const std::string latest = (output_.parent_path() / "latest_universal").string();
    formats::write_text(latest, output_.filename().string(), true);
    report.files.push_back(latest);
    report.tensors = parameters_;
    note_what_is_left(report);
    journal.remove();
  }

 private:
  // DeepSpeed's universal format has parameters that are stepped, and nothing else.
  void note_what_is_left(OutputReport& report) const {
    const auto left = std::count_if(source_.tensors.begin(), source_.tensors.end(),
                                    [](const NamedTensor& t) { return t.sub_group < 0; });
    if (left == 0) return;
    report.notes.push_back(concat(
        left,
        " frozen weights and buffers: a universal load leaves those that the new model has; load "
        "them from the model itself (zeromuon ckpt export), or reshard instead, which keeps them"));
  }

  std::vector<PlannedOutput> parameters() {
    std::vector<PlannedOutput> out;
    for (const std::vector<int>& group : plan_.groups()) {
      for (const int t : group) add_parameter(t, out);
    }
    return out;
  }

  void add_parameter(int number, std::vector<PlannedOutput>& out) {
    const NamedTensor& tensor = source_.tensors[number];
    if (!is_file_name(tensor.name)) {
      refuse(source_.folder, "parameter names that are file names", "\"" + tensor.name + "\"",
             "this model has no universal checkpoint");
    }
    ++parameters_;
    const fs::path folder = output_ / "zero" / tensor.name;
    add_file(folder, "fp32", {PlannedState::Fill::kSource, tensor.value, 1, ElementType::kFloat32},
             tensor.value.numel(), out);
    for (const char* name : kStates)
      add_file(folder, name, state_of(number, name), tensor.value.numel(), out);
  }

  // DeepSpeed's Muon has a momentum_buffer: it goes where the loader looks for a first moment.
  PlannedState state_of(int number, const std::string& name) const {
    const States& states = plan_.states(number);
    auto found = states.find(name);
    if (found == states.end() && name == "exp_avg") found = states.find("momentum_buffer");
    if (found == states.end()) return {PlannedState::Fill::kOneZero, {}, 1, ElementType::kFloat32};
    PlannedState out = found->second;
    out.type = ElementType::kFloat32;
    return out;
  }

  void add_file(const fs::path& folder, const std::string& name, const PlannedState& state,
                int64_t numel, std::vector<PlannedOutput>& out) const {
    const std::string path = (folder / (name + ".pt")).string();
    const bool one = state.fill == PlannedState::Fill::kOneZero;
    const int64_t bytes = one ? 4 : numel * size_of(state.type);
    out.push_back({path, bytes, [=, this] { return open_parameter(path, state, numel); }});
  }

  std::unique_ptr<OpenOutput> open_parameter(const std::string& path, const PlannedState& state,
                                             int64_t numel) const {
    formats::make_folders(fs::path(path).parent_path().string());
    auto out = std::make_unique<TorchOutput>(path, run_.force);
    Block block;
    block.type = state.type;
    if (state.fill == PlannedState::Fill::kOneZero) {
      block.pieces = {{{block.type, {1}, {}, {}}, 0, 1, 1}};
      out->begin(out->add_repeated(std::move(block), numel));
      return out;
    }
    if (state.fill == PlannedState::Fill::kZeros) {
      block.pieces = {{{block.type, {numel}, {}, {}}, 0, numel, 1}};
    } else if (numel > 0) {
      block.pieces = {piece_of(state.source, 0, numel, state.factor)};
    }
    out->begin(out->add_tensor(std::move(block), {numel}));
    return out;
  }

  // The scalars of all groups. A group without a step gets the first one's.
  NodeId states_node(TorchFileWriter& writer) const {
    PickleGraph& graph = writer.graph();
    const NodeId all = graph.dict();
    NodeId step = kNoNode;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const NodeId state = graph.dict();
      plan_.add_scalars(writer, 0, groups_[g], state);
      if (step == kNoNode) step = graph.get(state, "step");
      const NodeId number = graph.integer(static_cast<int64_t>(g));
      graph.mutable_dict_items(all).emplace_back(number, state);
    }
    if (step == kNoNode) step = graph.integer(source_.facts.global_steps.value_or(0));
    for (const auto& [number, state] : std::vector(graph.dict_items(all))) {
      if (graph.get(state, "step") == kNoNode) graph.set(state, "step", step);
    }
    return all;
  }

  // Rank 0's optimizer file without its flat tensors, which the loader does not read. It takes the
  // step from the first state.
  std::unique_ptr<OpenOutput> open_optimizer(const std::string& path) const {
    auto out = std::make_unique<TorchOutput>(path, run_.force);
    TorchFileWriter& writer = out->writer();
    PickleGraph& graph = writer.graph();
    const NodeId state_dict = plan_.state_dict(writer, 0, groups_, states_node(writer));
    const TorchFile& file = optimizer_file(source_, 0);
    const PickleGraph& from = file.graph();
    const bool universal = source_.kind == Kind::kUniversal;
    const NodeId inner = universal ? file.root() : from.get(file.root(), "optimizer_state_dict");
    const std::set<std::string_view> made = {"optimizer_state_dict", "fp32_flat_groups",
                                             "param_groups"};
    const NodeId root = graph.dict();
    for (const auto& [key, value] : from.dict_items(inner)) {
      if (made.contains(from.as_text(key))) continue;
      graph.set(root, from.as_text(key), writer.copy_of(file, value));
    }
    graph.set(root, "optimizer_state_dict", state_dict);
    graph.set(root, "fp32_flat_groups", graph.sequence(NodeKind::kList));
    graph.set(root, "param_groups", graph.get(state_dict, "param_groups"));
    out->begin(root);
    return out;
  }

  std::unique_ptr<OpenOutput> open_model(const std::string& path, size_t rank) const {
    auto out = std::make_unique<TorchOutput>(path, run_.force);
    const TorchFile& file = *source_.model_files.at(rank);
    out->begin(model_root(out->writer(), plan_, groups_, file));
    return out;
  }

  const Checkpoint& source_;
  const OptimizerPlan& plan_;
  fs::path output_;
  const RunOptions& run_;
  std::vector<SubGroup> groups_;
  int64_t parameters_ = 0;
};

}  // namespace

void write_universal(const OptimizerPlan& plan, const std::string& output, const std::string& what,
                     const RunOptions& run, OutputReport& report) {
  UniversalWriter(plan, output, run).write(what, report);
}

}  // namespace zeromuon::convert
