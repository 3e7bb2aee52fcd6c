// One reader per format; open_checkpoint() chooses.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

// The folder of a ZeRO-3 checkpoint itself, or of its run with `latest`.
bool looks_like_zero3(const fs::path& folder);
Checkpoint read_zero3(const fs::path& path, const std::string& tag);

bool is_universal(const fs::path& folder);          // has zero/
bool looks_like_universal(const fs::path& folder);  // ... or `latest_universal` names one that has
Checkpoint read_universal(const fs::path& path);

// A file, or a folder of them with or without index.
Checkpoint read_safetensors(const fs::path& path);
Checkpoint read_torch(const fs::path& path);

Checkpoint read_dcp(const fs::path& folder);

// ---- the files of the ranks in a folder of ZeRO-3, and what DeepSpeed calls them

// prefix: of optimizer files, "", "bf16_" or "fp16_".
std::string model_file_name(int rank);
std::string optim_file_name(const std::string& prefix, int rank);

// Whether the name is one of those that a rank's file may have.
bool is_rank_file(const std::string& name);

// The files of one kind by rank.
struct RankFiles {
  std::map<int, fs::path> paths;
  std::string prefix;  // of their names
};

struct RankFolder {
  RankFiles model, optim;
};

// Raises FormatError for files of several model-parallel ranks, or of several checkpoints.
RankFolder list_rank_files(const fs::path& folder);

// ---- shared by the readers of DeepSpeed's formats

using TorchFilePtr = std::shared_ptr<const TorchFile>;
TorchFilePtr open_torch_file(const fs::path& path);

// Names, shapes, buffers, frozen parameters and aliases from the model files of all ranks;
// `tensors` gets the trainable ones first, in flat order, without values.
void read_model_files(Checkpoint& checkpoint);

// The optimizer's own state dict: `zeromuon` entry, `param_groups`, `state`. Sets optimizer,
// momentum_kind and facts.
struct OptimizerFile {
  TorchFilePtr file;
  NodeId state_dict = kNoNode;
};
void read_optimizer(Checkpoint& checkpoint, const OptimizerFile& optimizer);

// The step of the first state that has one. Raises FormatError.
std::optional<int64_t> optimizer_step(const OptimizerFile& optimizer);

// Removes states that say nothing: the second moment that stands in for a Muon parameter's.
void drop_placeholders(Checkpoint& checkpoint);

// The line that a small file like `latest` holds.
std::string read_name(const fs::path& file);

// An output folder that holds a checkpoint of another kind, and would hold two.
[[noreturn]] void refuse_kind(const std::string& folder, const std::string& got);

[[noreturn]] void refuse(const std::string& file, const std::string& expected,
                         const std::string& got, const std::string& remedy);

}  // namespace zeromuon::convert
