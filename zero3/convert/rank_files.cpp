#include <algorithm>
#include <charconv>
#include <string_view>

#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

// What the name of a rank's file says.
struct RankFileName {
  std::string prefix;
  int rank = 0, model_rank = 0;
  bool model = false;
};

// Takes `text` off the front of `rest`, or returns false.
bool skip(std::string_view& rest, std::string_view text) {
  if (!rest.starts_with(text)) return false;
  rest.remove_prefix(text.size());
  return true;
}

// Takes 1 to 6 digits off the front of `rest`, or returns false.
bool take_number(std::string_view& rest, int& out) {
  constexpr size_t kMaxDigits = 6;
  const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  if (digits == 0 || digits > kMaxDigits) return false;
  std::from_chars(rest.data(), rest.data() + digits, out);
  rest.remove_prefix(digits);
  return true;
}

bool parse_rank_file(std::string_view rest, RankFileName& out) {
  if (skip(rest, "bf16_")) {
    out.prefix = "bf16_";
  } else if (skip(rest, "fp16_")) {
    out.prefix = "fp16_";
  }
  const bool numbers = skip(rest, "zero_pp_rank_") && take_number(rest, out.rank) &&
                       skip(rest, "_mp_rank_") && take_number(rest, out.model_rank);
  if (!numbers) return false;
  skip(rest, "_");  // DeepSpeed 0.3 wrote "...mp_rank_00optim_states.pt"
  out.model = skip(rest, "model");
  return (out.model || skip(rest, "optim")) && rest == "_states.pt";
}

// "3" of zero_pp_rank_3_mp_rank_00_model_states; "" of other names.
std::string rank_in(const std::string& name) {
  constexpr std::string_view kBefore = "zero_pp_rank_";
  const size_t at = name.find(kBefore);
  if (at == std::string::npos) return "";
  const size_t begin = at + kBefore.size();
  return name.substr(begin, name.find_first_not_of("0123456789", begin) - begin);
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

std::vector<formats::Finding> misplaced_files(const Checkpoint& checkpoint) {
  std::vector<formats::Finding> found;
  for (const auto* files : {&checkpoint.model_files, &checkpoint.optim_files}) {
    for (const auto& file : *files) {
      const std::string own = rank_in(fs::path(file->path()).filename().string());
      const std::string written = rank_in(file->archive_name());
      if (own.empty() || written.empty() || own == written) continue;
      found.push_back({file->path(), -1, "the file of rank " + own,
                       "one that was written as that of rank " + written,
                       "restore this rank's file, or use an older checkpoint"});
    }
  }
  return found;
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
