#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/formats/safetensors.h"
#include "zero3/convert/checkpoint.h"
#include "zero3/convert/names.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

bool has_file(const fs::path& folder, const char* name) {
  std::error_code ignored;
  return fs::is_regular_file(folder / name, ignored);
}

// Whether the folder has a file with this ending.
bool has_ending(const fs::path& folder, const std::string& ending) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ending) return true;
  }
  return false;
}

// Whether `latest` names a ZeRO-3 checkpoint, and not a universal one.
bool latest_is_zero3(const fs::path& folder) {
  if (!has_file(folder, "latest")) return false;
  const std::string name = read_name(folder / "latest");
  return is_file_name(name) && looks_like_zero3(folder / name) && !is_universal(folder / name);
}

// A run's folder may have both pointers; `latest` counts, as in DeepSpeed.
std::optional<Kind> kind_of_folder(const fs::path& folder) {
  if (is_universal(folder)) return Kind::kUniversal;
  if (latest_is_zero3(folder)) return Kind::kZero3;
  if (looks_like_universal(folder)) return Kind::kUniversal;
  if (looks_like_zero3(folder)) return Kind::kZero3;
  if (has_file(folder, ".metadata")) return Kind::kDcp;
  if (has_ending(folder, ".safetensors")) return Kind::kSafetensors;
  if (has_file(folder, "pytorch_model.bin") || has_file(folder, "pytorch_model.bin.index.json")) {
    return Kind::kTorch;
  }
  return std::nullopt;
}

// A run's folder has its checkpoints one level down. ZeRO-3 comes before its exports.
std::string remedy_for_parent(const fs::path& folder) {
  std::error_code error;
  std::vector<std::pair<Kind, fs::path>> found;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (!entry.is_directory(error)) continue;
    if (const auto kind = kind_of_folder(entry.path())) found.emplace_back(*kind, entry.path());
  }
  if (found.empty()) return "check the path";
  const auto& [kind, path] = *std::min_element(found.begin(), found.end());
  return concat("name ", path.string(), ", a ", name_of(kind), " checkpoint");
}

void check_no_tag(const std::string& path, Kind kind, const std::string& tag) {
  require(tag.empty() || kind == Kind::kZero3, path, ": a ", name_of(kind),
          " checkpoint has no tags, got --tag \"", tag, "\"; leave --tag out",
          kind == Kind::kUniversal ? ", and name the folder that has zero/ in it" : "");
}

Checkpoint read_as(Kind kind, const fs::path& path, const std::string& tag) {
  switch (kind) {
    case Kind::kUniversal:
      return read_universal(path);
    case Kind::kZero3:
      return read_zero3(path, tag);
    case Kind::kDcp:
      return read_dcp(path);
    case Kind::kSafetensors:
      return read_safetensors(path);
    default:
      return read_torch(path);
  }
}

// What a file is by its first bytes.
enum class Begin : uint8_t { kZip, kPickle, kSafetensors, kNothing, kOther, kPointer };

Begin begin_of(const std::string& path) {
  constexpr std::string_view kPointer = "version https://git-lfs";
  const InputFile file(path);
  std::string head(std::min<uint64_t>(file.size(), kPointer.size()), '\0');
  file.read(0, head.data(), head.size());
  uint64_t header_bytes = 0;
  if (head.size() > sizeof header_bytes) std::memcpy(&header_bytes, head.data(), 8);
  if (head.empty()) return Begin::kNothing;
  if (head.starts_with("PK")) return Begin::kZip;
  if (head.starts_with("\x80")) return Begin::kPickle;
  if (head == kPointer) return Begin::kPointer;
  const bool header = head.size() > 8 && head[8] == '{' &&
                      header_bytes <= formats::SafetensorsFile::kMaxHeaderBytes;
  return header ? Begin::kSafetensors : Begin::kOther;
}

[[noreturn]] void refuse_unknown(const fs::path& path) {
  const std::string file = path.filename().string();
  const bool latest = file == "latest" || file == "latest_universal";
  refuse(path.string(),
         "a checkpoint: a file of safetensors or of torch.save, or a folder of ZeRO-3, universal, "
         "safetensors, torch or DCP",
         "a file that begins like none of them",
         latest ? "name its folder: " + (path.has_parent_path() ? path.parent_path().string() : ".")
                : "name the file or folder of a checkpoint");
}

// Raises FormatError when the file is none that a reader takes. The readers say what is damaged.
void check_begin(const fs::path& path) {
  const std::string name = path.string();
  const bool safetensors = path.extension() == ".safetensors";
  const Begin begin = begin_of(name);
  if (begin == Begin::kPointer) {
    refuse(name, "a checkpoint", "a pointer of Git LFS to one",
           "get the file itself: git lfs pull");
  }
  if (begin == Begin::kSafetensors && !safetensors) {
    refuse(name, "a name that ends in .safetensors", "another name of a safetensors file",
           "rename it, or link to it");
  }
  if ((begin == Begin::kZip || begin == Begin::kPickle) && safetensors) {
    refuse(name, "a safetensors file", "one that begins as those of torch.save do",
           "give it a name that ends in .pt or .bin");
  }
  if (begin == Begin::kOther) refuse_unknown(path);
}

Kind kind_of(const fs::path& path, const std::string& tag) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    const std::string name = path.string();
    if (name.ends_with(".safetensors.index.json")) return Kind::kSafetensors;
    if (!name.ends_with(".bin.index.json")) check_begin(path);
    return path.extension() == ".safetensors" ? Kind::kSafetensors : Kind::kTorch;
  }
  const bool tagged = !tag.empty() && is_file_name(tag) && !is_universal(path);
  if (tagged && looks_like_zero3(path / tag) && !is_universal(path / tag)) return Kind::kZero3;
  if (const auto kind = kind_of_folder(path)) return *kind;
  refuse(path.string(),
         "a ZeRO-3 checkpoint (with latest, or *_model_states.pt), a universal one (with zero/), a "
         "model of safetensors or pytorch_model.bin, or a DCP folder (with .metadata)",
         "none of these", remedy_for_parent(path));
}

// Views may repeat elements, and tensors may share bytes, which must not make a small file a large
// one without bound.
void check_sizes(const Checkpoint& checkpoint) {
  constexpr double kMaxRepeats = 1024, kAlways = 1 << 30;
  double stored = 0, claimed = 0;
  std::error_code error;
  for (const std::string& file : checkpoint.files) {
    const auto bytes = fs::file_size(file, error);
    stored += error ? 0 : static_cast<double>(bytes);
  }
  for (const NamedTensor& tensor : checkpoint.tensors) {
    claimed += static_cast<double>(tensor.value.bytes());
    for (const auto& [name, state] : tensor.states) claimed += static_cast<double>(state.bytes());
  }
  if (claimed <= kMaxRepeats * stored + kAlways) return;
  refuse(checkpoint.folder, "tensors of about the size of the files",
         concat(claimed, " bytes in files of ", stored),
         "tensors repeat their elements without end: save them with .contiguous()");
}

}  // namespace

void refuse(const std::string& file, const std::string& expected, const std::string& got,
            const std::string& remedy) {
  throw_format_error(file, -1, expected, got, remedy);
}

void refuse_kind(const std::string& folder, const std::string& got) {
  refuse(folder, "an output folder without a checkpoint of another kind", got,
         "choose another output");
}

std::string read_name(const fs::path& file) {
  std::string name = formats::read_text(file.string(), 4096);
  while (!name.empty() && std::isspace(static_cast<unsigned char>(name.back()))) name.pop_back();
  return name;
}

TorchFilePtr open_torch_file(const fs::path& path) {
  return std::make_shared<const TorchFile>(path.string());
}

Checkpoint open_checkpoint(const std::string& path, const std::string& tag) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) refuse(path, "a file or folder", "nothing there", "check the path");
  const Kind kind = kind_of(path, tag);
  check_no_tag(path, kind, tag);
  Checkpoint checkpoint = read_as(kind, path, tag);
  checkpoint.path = path;
  if (kind == Kind::kZero3 && tag.empty() && looks_like_universal(path)) {
    checkpoint.warnings.push_back(
        concat(path, ": latest names ", checkpoint.tag, ", and latest_universal ",
               read_name(fs::path(path) / "latest_universal"),
               "; the first is taken, as DeepSpeed does: name the folder of the other for that"));
  }
  check_names(checkpoint);
  check_sizes(checkpoint);
  return checkpoint;
}

}  // namespace zeromuon::convert
