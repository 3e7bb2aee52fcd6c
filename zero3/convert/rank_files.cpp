#include <regex>

#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

// What the name of a rank's file says.
struct RankFileName {
  std::string prefix;
  int rank = 0, model_rank = 0;
  bool model = false;
};

bool parse_rank_file(const std::string& text, RankFileName& out) {
  // DeepSpeed 0.3 wrote "...mp_rank_00optim_states.pt".
  static const std::regex kName(
      "(bf16_|fp16_|)zero_pp_rank_(\\d{1,6})_mp_rank_(\\d{1,6})_?(model|optim)_states\\.pt");
  std::smatch found;
  if (!std::regex_match(text, found, kName)) return false;
  out = {found[1], std::stoi(found[2]), std::stoi(found[3]), found[4] == "model"};
  return true;
}

void add(RankFiles& files, const RankFileName& name, const fs::path& path) {
  if (files.paths.empty()) files.prefix = name.prefix;
  if (files.prefix == name.prefix && files.paths.emplace(name.rank, path).second) return;
  refuse(path.string(), "files of one checkpoint", "files of several, of other names",
         "remove those that do not belong to this checkpoint");
}

}  // namespace

std::string model_file_name(int rank) {
  return concat("zero_pp_rank_", rank, "_mp_rank_00_model_states.pt");
}

std::string optim_file_name(const std::string& prefix, int rank) {
  return concat(prefix, "zero_pp_rank_", rank, "_mp_rank_00_optim_states.pt");
}

bool is_rank_file(const std::string& name) {
  return name.find("zero_pp_rank_") != std::string::npos && name.ends_with(".pt");
}

RankFolder list_rank_files(const fs::path& folder) {
  RankFolder out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    RankFileName name;
    if (!parse_rank_file(entry.path().filename().string(), name)) continue;
    if (name.model_rank != 0) {
      refuse(entry.path().string(), "one model-parallel rank", "another one",
             "tensor and pipeline parallel checkpoints are not supported");
    }
    add(name.model ? out.model : out.optim, name, entry.path());
  }
  return out;
}

}  // namespace zeromuon::convert
