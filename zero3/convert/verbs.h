// The verbs of the checkpoint tool as functions. All raise FormatError for what is wrong with files
// and ValueError for what is wrong with options; a verb that does not go with the kind of input
// says which do.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "zero3/convert/checkpoint.h"
#include "zero3/convert/described_model.h"
#include "zero3/convert/transfer.h"

namespace zeromuon::convert {

struct Source {
  std::string path;
  std::string tag;  // "": the latest
};

// The verbs that `kind` allows: "inspect", ...
std::vector<std::string> verbs_of(Kind kind);

// ---- inspect: open_checkpoint() of checkpoint.h tells all.

// ---- verify
struct VerifyOptions {
  Source source;
  bool check_crc = true;
  RunOptions run;
};
struct TensorHealth {
  std::string name, part;  // part: "value", "exp_avg", ...
  int64_t nan = 0, infinite = 0;
  double norm = 0;  // of the finite elements, in fp64
};
struct VerifyReport {
  std::vector<formats::Finding> problems;  // empty: all is well
  std::vector<TensorHealth> tensors;       // padding is not looked at
  int64_t bytes_read = 0;
};
VerifyReport verify(const VerifyOptions& options);

// ---- diff
struct DiffOptions {
  Source a, b;
  bool states = true;  // compare optimizer states where both have them
  RunOptions run;
};
struct TensorDifference {
  std::string name, part;
  std::string reason;      // "shape", "dtype" (equal values otherwise) or "values"
  std::string in_a, in_b;  // shapes or dtypes
  int64_t different = 0;   // elements
  double max_abs = 0, max_rel = 0;
};
struct DiffReport {
  std::vector<std::string> only_in_a, only_in_b;  // "name" or "name: part"
  std::vector<TensorDifference> differences;
  int64_t compared = 0, equal = 0;  // tensors and states
};
DiffReport diff(const DiffOptions& options);

// ---- export
struct ExportOptions {
  Source source;
  std::string output;  // a folder; for torch a file name is taken, too (*.pt, *.bin, *.pth)
  std::string format = "safetensors";  // or "torch"
  std::string dtype;                   // "", or one for all trainable floating tensors
  std::vector<std::pair<std::string, std::string>> dtype_patterns;  // glob -> dtype, first wins
  std::vector<std::string> include, exclude;                        // globs; none: all
  int64_t max_shard_bytes = 5'000'000'000;                          // 0: one file
  DescribedModel model;                                             // whose files go with them
  RunOptions run;
};
struct OutputReport {
  std::vector<std::string> files;
  int64_t bytes_written = 0, tensors = 0;
  std::map<std::string, std::string> aliases;
  std::vector<std::string> notes;  // what was reset, duplicated or left out
  int kept_files = 0;              // finished by the run that was resumed
};
OutputReport export_weights(const ExportOptions& options);

// ---- reshard
struct ReshardOptions {
  Source source;
  std::string output;  // folder that gets `tag`/ and `latest`
  int world_size = 0;
  int64_t sub_group_size = 0;  // elements per rank; 0: as the checkpoint's configuration says
  std::string tag;             // "": that of the source
  RunOptions run;
};
OutputReport reshard(const ReshardOptions& options);

// ---- universal
struct UniversalOptions {
  Source source;
  std::string output;  // the folder itself; `latest_universal` is written beside it
  RunOptions run;
};
OutputReport universal(const UniversalOptions& options);

// ---- convert-optimizer
struct ConvertOptimizerOptions {
  Source source;
  std::string output;
  std::string to;             // "ZeroMuon", "AdamW"
  std::string momentum_kind;  // of ZeroMuon: "" (as it is, or "ema"), "ema", "heavy_ball"
  // name -> "muon" or "adamw"; needed from AdamW to ZeroMuon.
  std::map<std::string, std::string> roles;
  // Needed where the source does not say them; else they replace what it says.
  std::map<std::string, double>
      numbers;  // "lr", "adam_lr", "momentum", "beta1", "beta2", "eps", "weight_decay"
  std::string tag;
  DescribedModel model;  // that the roles are of
  RunOptions run;
};
OutputReport convert_optimizer(const ConvertOptimizerOptions& options);

}  // namespace zeromuon::convert
