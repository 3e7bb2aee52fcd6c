// Names that come from files or from the command line: what they may be, and which patterns match.
#pragma once

#include <string>
#include <vector>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

inline constexpr int kMaxRanks = 1 << 16;  // of a checkpoint that is read or written

// Raises FormatError that names the file where a name or a fact is no UTF-8: neither safetensors
// nor JSON can hold it.
void check_names(const Checkpoint& checkpoint);

// What an output is called that DeepSpeed will look for. Raises ValueError for what is no name of a
// folder, is that of a file beside it, or is no UTF-8. option: where to name another, "--new-tag".
void check_new_tag(const std::string& tag, const char* option);

// The tag of a checkpoint that lies in `folder`: its name, also of "." and "a/".
std::string tag_of_folder(const std::string& folder);

// Raises ValueError with the nearest names when a pattern matches no tensor and no tied name.
void check_patterns(const Checkpoint& checkpoint, const char* option,
                    const std::vector<std::string>& patterns);

}  // namespace zeromuon::convert
