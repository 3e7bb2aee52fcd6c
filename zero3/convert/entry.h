// The entry of ZeroMuon in an optimizer's state dict, by the schema that Python reads, too:
// python/zeromuon/base/entry_schema.json.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "csrc/formats/torch_writer.h"

namespace zeromuon::convert {

// Made of the schema by CMake.
struct EntrySchema {
  std::string_view key;
  int64_t format;
  std::vector<std::string_view> needs;   // features that this version knows
  std::vector<std::string_view> fields;  // all others are kept and ignored
};
extern const EntrySchema kEntrySchema;

// The entry of a state dict, or in its first group; kNoNode without. Raises FormatError for another
// format, and for a need that this version does not know.
formats::NodeId find_entry(const formats::TorchFile& file, formats::NodeId state_dict);

// Copies those fields of `from` that the schema does not know to `to`.
void keep_unknown_fields(formats::TorchFileWriter& writer, const formats::TorchFile& file,
                         formats::NodeId from, formats::NodeId to);

}  // namespace zeromuon::convert
