// The files of the ranks in a folder of ZeRO-3, and what DeepSpeed calls them.
#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace zeromuon::convert {

// prefix: of optimizer files, "", "bf16_" or "fp16_".
std::string model_file_name(int rank);
std::string optim_file_name(const std::string& prefix, int rank);

// Whether the name is one of those that a rank's file may have.
bool is_rank_file(const std::string& name);

// The files of one kind by rank.
struct RankFiles {
  std::map<int, std::filesystem::path> paths;
  std::string prefix;  // of their names
};

struct RankFolder {
  RankFiles model, optim;
};

// Raises FormatError for files of several model-parallel ranks, or of several checkpoints.
RankFolder list_rank_files(const std::filesystem::path& folder);

}  // namespace zeromuon::convert
