// Pickles, protocols 2 to 5, read and written without Python.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "csrc/formats/pickle_graph.h"

namespace zeromuon::formats {

struct PickleLimits {
  uint64_t bytes = 256ull << 20;
  int depth = 400;  // Python's own pickler gives up near 500 nested lists
};

// Reads one pickle. Time and memory are in proportion to `bytes`: what would take more than 20
// times as much, or 2 GiB, is refused. Raises FormatError naming `file` and the offset in it, where
// the pickle begins at `file_offset`.
PickleGraph read_pickle(const uint8_t* data, uint64_t bytes, const std::string& file,
                        int64_t file_offset, const PickleLimits& limits = {});

// Protocol 2, which torch.load expects. Raises FormatError when `root` contains itself.
std::vector<uint8_t> write_pickle(const PickleGraph& graph, NodeId root, const std::string& file);

}  // namespace zeromuon::formats
