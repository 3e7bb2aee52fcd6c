#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "zero3/convert/names.h"
#include "zero3/convert/read_formats.h"
#include "zero3/convert/seals.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::convert {
namespace {

constexpr size_t kMaxOpenRanks = 128;  // more are opened for each read

std::string read_tag(const fs::path& run) {
  std::string tag = read_name(run / "latest");
  if (!is_file_name(tag)) {
    refuse((run / "latest").string(), "the name of a folder", "\"" + tag + "\"",
           "write the tag into it, or name one with --tag");
  }
  return tag;
}

// The folder with the files, and its tag.
std::pair<fs::path, std::string> find_folder(const fs::path& path, const std::string& tag) {
  std::error_code ignored;
  if (!tag.empty()) {
    require(is_file_name(tag), "tag: expected the name of a folder, got \"", tag, "\"");
    if (!fs::is_directory(path / tag, ignored)) {
      refuse((path / tag).string(), "the folder of the tag", "none", "check --tag");
    }
    return {path / tag, tag};
  }
  if (!fs::is_regular_file(path / "latest", ignored)) {
    return {path, tag_of_folder(path.string())};
  }
  const std::string latest = read_tag(path);
  if (!fs::is_directory(path / latest, ignored)) {
    refuse((path / "latest").string(), "the name of a folder beside it", "\"" + latest + "\"",
           "the checkpoint that it names is missing: restore it, or name another with --tag");
  }
  return {path / latest, latest};
}

class Zero3Reader {
 public:
  Zero3Reader(fs::path folder, std::string tag)
      : folder_(std::move(folder)), files_(list_rank_files(folder_)) {
    out_.kind = Kind::kZero3;
    out_.folder = folder_.string();
    out_.tag = std::move(tag);
  }

  Checkpoint read() {
    check_stage();
    open_files(files_.model, out_.model_files, "model");
    open_files(files_.optim, out_.optim_files, "optim");
    check_world_size();
    read_model_files(out_);
    for (const auto& file : out_.optim_files) read_rank(*file);
    place_parameters();
    read_optimizer(out_, {out_.optim_files[0], optimizers_[0]});
    check_steps();
    drop_placeholders(out_);
    out_.facts.optim_prefix = files_.optim.prefix;
    return std::move(out_);
  }

 private:
  void check_stage() const {
    std::error_code ignored;
    const bool other = fs::exists(folder_ / "mp_rank_00_model_states.pt", ignored);
    if (!files_.model.paths.empty() && !files_.optim.paths.empty()) return;
    refuse(folder_.string(), "model and optimizer files of ZeRO stage 3",
           other ? "a checkpoint of stage 0, 1 or 2" : "none, or only one kind",
           !other                       ? "the checkpoint is incomplete: restore it"
           : files_.optim.paths.empty() ? concat("its weights are whole: zeromuon ckpt export ",
                                                 (folder_ / "mp_rank_00_model_states.pt").string())
                                        : "DeepSpeed's zero_to_fp32.py reads stages 1 and 2");
  }

  void open_files(const RankFiles& files, std::vector<TorchFilePtr>& opened, const char* kind) {
    int rank = 0;
    for (const auto& [number, path] : files.paths) {
      if (number != rank) {
        refuse(folder_.string(), concat("a ", kind, " file of rank ", rank), "none",
               "a rank's file is missing: restore it, or use an older checkpoint");
      }
      ++rank;
    }
    for (const auto& [number, path] : files.paths) {
      opened.push_back(open_torch_file(path));
      out_.files.push_back(path.string());
      if (files.paths.size() > kMaxOpenRanks) opened.back()->file().park();
    }
  }

  // How many ranks the first optimizer file says there are.
  int ranks_said() const {
    const TorchFile& first = *out_.optim_files[0];
    const PickleGraph& graph = first.graph();
    NodeId count = graph.find(first.root(), {"optimizer_state_dict", "partition_count"});
    if (!graph.items(count).empty()) count = graph.items(count)[0];
    const int64_t said = graph.as_int(count, -1);
    if (said >= 1 && said <= kMaxRanks) return static_cast<int>(said);
    refuse(first.path(), "a partition_count", said < 0 ? "none" : concat(said),
           "this is no optimizer file of ZeRO");
  }

  // What the optimizer files say must be what is there.
  void check_world_size() {
    out_.world_size = ranks_said();
    const auto said = static_cast<size_t>(out_.world_size);
    const size_t models = out_.model_files.size(), optims = out_.optim_files.size();
    if (said == models && said == optims) return;
    refuse(folder_.string(), concat("the files of ", said, " ranks"),
           concat(models, " model and ", optims, " optimizer files"),
           said > models || said > optims
               ? "a rank's file is missing: restore it, or use an older checkpoint"
               : "files of another world size are mixed in: remove them");
  }

  using FlatGroups = std::vector<StoredTensor>;  // of a rank

  static FlatGroups flat_groups_of(const TorchFile& file) {
    const PickleGraph& graph = file.graph();
    const NodeId flat = graph.find(file.root(), {"optimizer_state_dict", "fp32_flat_groups"});
    if (flat == kNoNode) {
      refuse(file.path(), "fp32_flat_groups", "none",
             "this is no optimizer file of ZeRO stage 3, or its weights were removed");
    }
    FlatGroups groups;
    for (const NodeId node : graph.items(flat)) {
      const auto stored = file.tensor(node);
      if (!stored || !stored->contiguous()) {
        refuse(file.path(), "a flat tensor in fp32_flat_groups", graph.describe(node, 60),
               kDamaged);
      }
      groups.push_back(*stored);
    }
    return groups;
  }

  void read_rank(const TorchFile& file) {
    const PickleGraph& graph = file.graph();
    flat_.push_back(flat_groups_of(file));
    optimizers_.push_back(
        graph.find(file.root(), {"optimizer_state_dict", "optimizer_state_dict"}));
    states_.emplace_back();
    for (const auto& [key, value] : graph.dict_items(graph.get(optimizers_.back(), "state"))) {
      states_.back()[graph.as_int(key, -1)] = value;
    }
  }

  // Ranks of different saves were stepped a different number of times.
  void check_steps() const {
    const auto text = [](const std::optional<int64_t>& step) { return step ? concat(*step) : ""; };
    const auto first = optimizer_step({out_.optim_files[0], optimizers_[0]});
    for (size_t rank = 1; rank < out_.optim_files.size(); ++rank) {
      const TorchFilePtr& file = out_.optim_files[rank];
      const auto here = optimizer_step({file, optimizers_[rank]});
      if (here == first) continue;
      refuse(file->path(), "optimizer step " + text(first) + ", as on rank 0", text(here),
             "files of different checkpoints are mixed: restore this rank's");
    }
  }

  using Params = std::vector<zero3::Zero3Param>;  // of a flat group

  // Walks the parameters in flat order through the flat groups. DeepSpeed gives one dict of shapes
  // per group; older ones give one for all, so a new group begins where one is full.
  void place_parameters() {
    std::vector<Params> params(flat_[0].size());
    out_.sub_groups.resize(params.size());
    size_t group = 0;
    int64_t end = 0;  // of what is placed in the group
    for (size_t i = 0; i < out_.tensors.size(); ++i) {
      if (out_.tensors[i].sub_group < 0) continue;
      while (group < params.size() && end == flat_[0][group].numel() && end > 0) {
        ++group;
        end = 0;
      }
      end += place(static_cast<int>(i), group, end, params);
    }
    check_filled(group, end);
    for (size_t g = 0; g < params.size(); ++g) {
      read_group(g, zero3::zero3_layout(out_.world_size, params[g]));
    }
  }

  // Returns the elements that it takes.
  int64_t place(int number, size_t group, int64_t offset, std::vector<Params>& params) {
    NamedTensor& tensor = out_.tensors[number];
    const int64_t numel = tensor.value.numel();
    const int64_t chunk = zero3::zero3_chunk(numel, out_.world_size);
    check_room(tensor, group, offset, chunk);
    tensor.sub_group = static_cast<int>(group);
    out_.sub_groups[group].tensors.push_back(number);
    params[group].push_back({tensor.name, numel, chunk, offset, 0, 0});
    return chunk;
  }

  void check_filled(size_t group, int64_t end) const {
    const FlatGroups& groups = flat_[0];
    if (group + 1 >= groups.size() && (groups.empty() || end == groups[group].numel())) return;
    refuse(out_.optim_files[0]->path(), "flat groups that the shapes fill",
           concat("group ", group, " filled to ", end), kDamaged);
  }

  void check_room(const NamedTensor& tensor, size_t group, int64_t offset, int64_t chunk) const {
    const auto& groups = flat_[0];
    if (group < groups.size() && offset + chunk <= groups[group].numel()) return;
    const bool empty =
        std::all_of(groups.begin(), groups.end(), [](const auto& g) { return g.numel() == 0; });
    if (empty && chunk > 0) refuse_offloaded();
    refuse(out_.optim_files[0]->path(),
           concat("room for ", chunk, " elements of \"", tensor.name, "\" in flat group ", group),
           group < groups.size() ? concat(groups[group].numel() - offset, " elements")
                                 : "no such group",
           kDamaged);
  }

  [[noreturn]] void refuse_offloaded() const {
    std::string where;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_ / "offloaded_tensors", error)) {
      where += (where.empty() ? "" : ", ") + entry.path().string();
    }
    refuse(out_.optim_files[0]->path(), "flat tensors with elements", "empty ones",
           "the optimizer was offloaded to NVMe, and its data lie in " +
               (where.empty() ? (folder_ / "offloaded_tensors").string() + " or the NVMe folder of "
                                                                           "its configuration"
                              : where) +
               "; load it with DeepSpeed and save it without NVMe offload");
  }

  using Parts = std::map<std::string, StoredTensor>;  // of a group on a rank, by name

  // States of all ranks; the same file offsets arithmetic as for the weights.
  void read_group(size_t group, const zero3::ShardLayout& layout) {
    std::vector<Parts> parts;
    for (size_t rank = 0; rank < flat_.size(); ++rank) {
      parts.push_back(states_of(rank, group, layout.shard_numel()));
    }
    for (size_t p = 0; p < layout.params().size(); ++p) {
      if (layout.params()[p].numel == 0) continue;
      NamedTensor& tensor = out_.tensors[out_.sub_groups[group].tensors[p]];
      for (const auto& [part, first] : parts[0]) {
        TensorSource& source = part.empty() ? tensor.value : tensor.states[part];
        source.shape = tensor.value.shape;
        source.type = first.type;
        for (int rank = 0; rank < layout.world_size(); ++rank) {
          add_range(source, rank, part_of(parts, rank, part),
                    layout.real_range(static_cast<int>(p), rank));
        }
      }
    }
  }

  const StoredTensor& part_of(const std::vector<Parts>& parts, size_t rank,
                              const std::string& name) const {
    const auto found = parts[rank].find(name);
    if (found != parts[rank].end() && found->second.type == parts[0].at(name).type) {
      return found->second;
    }
    refuse(out_.optim_files[rank]->path(), "the state \"" + name + "\" of rank 0",
           "none, or another", "files of different checkpoints are mixed: restore this rank's");
  }

  void add_range(TensorSource& source, size_t rank, const StoredTensor& stored,
                 const zero3::ShardRange& real) const {
    if (real.numel == 0) return;
    const auto size = static_cast<uint64_t>(size_of(stored.type));
    source.ranges.push_back({out_.optim_files[rank]->shared_file(),
                             stored.file_offset + static_cast<uint64_t>(real.offset) * size,
                             static_cast<uint64_t>(real.numel) * size});
  }

  // The master weights as "" and all states that have one value per element.
  Parts states_of(size_t rank, size_t group, int64_t numel) const {
    const TorchFile& file = *out_.optim_files[rank];
    if (flat_[rank].size() != flat_[0].size() || flat_[rank][group].numel() != numel) {
      refuse(file.path(), concat("a flat group ", group, " of ", numel, " elements"),
             concat(flat_[rank].size(), " groups, or other sizes"),
             "files of different checkpoints are mixed: restore this rank's");
    }
    Parts out = {{"", flat_[rank][group]}};
    const auto values = states_[rank].find(static_cast<int64_t>(group));
    if (values == states_[rank].end()) return out;
    const PickleGraph& graph = file.graph();
    for (const auto& [key, value] : graph.dict_items(values->second)) {
      const auto stored = file.tensor(value);
      if (!stored || stored->shape != std::vector<int64_t>{numel}) continue;
      if (stored->contiguous()) out[std::string(graph.as_text(key))] = *stored;
    }
    return out;
  }

  fs::path folder_;
  RankFolder files_;
  Checkpoint out_;
  std::vector<FlatGroups> flat_;                             // [rank][group]
  std::vector<NodeId> optimizers_;                           // [rank]
  std::vector<std::unordered_map<int64_t, NodeId>> states_;  // [rank]: of the groups
};

}  // namespace

bool looks_like_zero3(const fs::path& folder) {
  std::error_code error;
  if (fs::is_regular_file(folder / "latest", error)) return true;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (is_rank_file(name) || name == "mp_rank_00_model_states.pt") return true;
  }
  return false;
}

Checkpoint read_zero3(const fs::path& path, const std::string& tag) {
  auto [folder, found] = find_folder(path, tag);
  Checkpoint checkpoint = Zero3Reader(folder, found).read();
  check_seals(folder);  // what is missing or damaged is told first
  return checkpoint;
}

}  // namespace zeromuon::convert
