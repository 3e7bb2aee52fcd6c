// One reader per format; open_checkpoint() chooses.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

// The folder of a ZeRO-3 checkpoint itself, or of its run with `latest`.
bool looks_like_zero3(const std::filesystem::path& folder);
Checkpoint read_zero3(const std::filesystem::path& path, const std::string& tag);

bool looks_like_universal(const std::filesystem::path& folder);
Checkpoint read_universal(const std::filesystem::path& path);

// A file, or a folder of them with or without index.
Checkpoint read_safetensors(const std::filesystem::path& path);
Checkpoint read_torch(const std::filesystem::path& path);

Checkpoint read_dcp(const std::filesystem::path& folder);

// ---- shared by the readers of DeepSpeed's formats

using TorchFilePtr = std::shared_ptr<const formats::TorchFile>;
TorchFilePtr open_torch_file(const std::filesystem::path& path);

// Names, shapes, buffers, frozen parameters and aliases from the model files of all ranks;
// `tensors` gets the trainable ones first, in flat order, without values.
void read_model_files(Checkpoint& checkpoint);

// The optimizer's own state dict: `zeromuon` entry, `param_groups`, `state`. Sets optimizer,
// momentum_kind and facts.
struct OptimizerFile {
  TorchFilePtr file;
  formats::NodeId state_dict = formats::kNoNode;
};
void read_optimizer(Checkpoint& checkpoint, const OptimizerFile& optimizer);

// The step of the first state that has one. Raises FormatError.
std::optional<int64_t> optimizer_step(const OptimizerFile& optimizer);

// Removes states that say nothing: the second moment that stands in for a Muon parameter's.
void drop_placeholders(Checkpoint& checkpoint);

// Whether a text from a checkpoint may become the name of a file in a folder of ours: not empty, no
// slash, no control characters, not "." or "..".
bool is_file_name(const std::string& text);

// An output folder that holds a checkpoint of another kind, and would hold two.
[[noreturn]] void refuse_kind(const std::string& folder, const std::string& got);

[[noreturn]] void refuse(const std::string& file, const std::string& expected,
                         const std::string& got, const std::string& remedy);

}  // namespace zeromuon::convert
