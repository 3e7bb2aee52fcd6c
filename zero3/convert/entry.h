// The entry of ZeroMuon in an optimizer's state dict, by the schema that Python reads, too:
// python/zeromuon/base/entry_schema.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

struct EntrySchema {
  std::string key;
  int64_t format;
  std::string marker;               // a file of a checkpoint that `zeromuon finetune` wrote whole
  std::vector<std::string> needs;   // features that this version knows
  std::vector<std::string> fields;  // all others are kept and ignored

  // Each group's lr is its own, adam_lr/lr included.
  const std::string& rates_in_groups() const { return needs.at(0); }
};
extern const EntrySchema kEntrySchema;

// The entry of a state dict, or in its first group; kNoNode without. Raises FormatError for another
// format, and for a need that this version does not know.
NodeId find_entry(const TorchFile& file, NodeId state_dict);

// Whether an entry, or none, says that a reader must know this.
bool needs(const TorchFile& file, NodeId entry, std::string_view feature);

// Copies those fields of `from` that the schema does not know to `to`.
void keep_unknown_fields(TorchFileWriter& writer, const TorchFile& file, NodeId from, NodeId to);

}  // namespace zeromuon::convert
