// A checkpoint of any format as logical tensors: names, shapes, and where their bytes lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/formats/format_error.h"
#include "csrc/formats/input_file.h"
#include "csrc/formats/torch_writer.h"

namespace zeromuon::convert {

namespace fs = std::filesystem;

// The words of csrc/formats that this folder speaks, too.
using formats::ElementType;
using formats::InputFile;
using formats::is_file_name;
using formats::kDamaged;
using formats::kNoNode;
using formats::NodeId;
using formats::NodeKind;
using formats::numel_of;
using formats::PickleGraph;
using formats::StoredTensor;
using formats::throw_format_error;
using formats::TorchFile;
using formats::TorchFileWriter;

enum class Kind : uint8_t { kZero3, kUniversal, kSafetensors, kTorch, kDcp };
const char* name_of(Kind kind);  // "ZeRO-3", "universal", "safetensors", "torch", "DCP"

// A contiguous run of a tensor's row-major bytes.
struct ByteRange {
  std::shared_ptr<const InputFile> file;
  uint64_t offset = 0, bytes = 0;
};

// The values of a tensor: `ranges` one after the other are its elements in row-major order. With
// `strides` (elements, from the beginning of the only range) it is a view into that range instead.
struct TensorSource {
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<ByteRange> ranges;
  std::vector<int64_t> strides;

  int64_t numel() const;
  int64_t bytes() const { return numel() * size_of(type); }
};

// A tensor whose elements are those of one range.
TensorSource source_at(ElementType type, std::vector<int64_t> shape, ByteRange range);

// A tensor of a torch file.
TensorSource source_of(const TorchFile& file, const StoredTensor& tensor);

// Where elements [begin, begin + count) of a source without strides lie.
std::vector<ByteRange> ranges_of(const TensorSource& source, int64_t begin, int64_t count);

// Elements [begin, begin + count) in row-major order into `out`, wherever the pieces lie.
void read_elements(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out);

enum class TensorRole : uint8_t { kUnknown, kMuon, kAdamW, kFrozen, kBuffer };
const char* name_of(TensorRole role);  // "", "muon", "adamw", "frozen", "buffer"

struct NamedTensor {
  std::string name;
  TensorRole role = TensorRole::kUnknown;
  TensorSource value;                          // master weights for ZeRO-3 and universal
  std::map<std::string, TensorSource> states;  // "exp_avg", "exp_avg_sq", "momentum_buffer"
  int sub_group = -1;                          // of ZeRO-3
};

// A flat group of ZeRO-3: parameters that are optimized together.
struct SubGroup {
  std::vector<int> tensors;  // of Checkpoint::tensors, in flat order
  int param_group = 0;       // of the optimizer
};

// Whose states a checkpoint holds.
enum class Optimizer : uint8_t { kNone, kAdamW, kZeroMuon, kDeepSpeedMuon, kOther };

// What a checkpoint says of its run; empty where it does not.
struct Facts {
  std::optional<ElementType> dtype;  // of the model, or of most of its elements
  std::optional<int64_t> global_steps, global_samples, skipped_steps;
  std::optional<int64_t> optimizer_step;
  std::optional<int64_t> sub_group_size;    // elements of a rank that close a sub-group, above 0
  std::optional<int64_t> saved_on_ranks;    // universal
  std::optional<int64_t> other_entries;     // DCP: those that are no tensors
  std::optional<std::string> optim_prefix;  // ZeRO-3, of the optimizer files: "", "bf16_", "fp16_"
  std::optional<std::string> optimizer_type, ds_version;
  std::map<std::string, std::string> metadata;  // safetensors
};

// For people: name -> text of those that are there.
std::map<std::string, std::string> texts_of(const Facts& facts);

struct Checkpoint {
  Kind kind = Kind::kTorch;
  std::string path;    // what was asked for
  std::string folder;  // where the files lie
  std::string tag;     // ZeRO-3 and universal
  int world_size = 0;  // 0: not sharded
  Optimizer optimizer = Optimizer::kNone;
  std::string momentum_kind;  // "ema", "heavy_ball" or ""
  Facts facts;
  std::vector<NamedTensor> tensors;
  std::vector<SubGroup> sub_groups;
  std::map<std::string, std::string> aliases;  // tied name -> name of the stored tensor
  std::vector<std::string> files;
  std::vector<std::string> warnings;

  // Files of ZeRO-3, one per rank, and of universal (optimizer_state.pt, model states): for what
  // verbs copy besides tensors.
  std::vector<std::shared_ptr<const TorchFile>> model_files, optim_files;

  const NamedTensor* find(const std::string& name) const;
  // "AdamW", "ZeroMuon", "Muon (DeepSpeed)", what the configuration says of another, or "".
  std::string optimizer_name() const;
};

// Files of ranks that were written as those of others: torch.save puts the name of the file that it
// wrote around the records.
std::vector<formats::Finding> misplaced_files(const Checkpoint& checkpoint);

// Opens what `path` names: a folder of any of the formats, or a file. tag: which folder of a ZeRO-3
// run, "" for the one that `latest` names. Raises FormatError, also for missing ranks and mixed
// tags.
Checkpoint open_checkpoint(const std::string& path, const std::string& tag = "");

}  // namespace zeromuon::convert
