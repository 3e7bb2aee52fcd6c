#include <algorithm>
#include <filesystem>

#include "csrc/formats/format_error.h"
#include "zero3/convert/checkpoint.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

namespace fs = std::filesystem;

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

Checkpoint open_folder(const fs::path& folder, const std::string& tag) {
  if (looks_like_universal(folder)) return read_universal(folder);
  if (looks_like_zero3(folder)) return read_zero3(folder, tag);
  if (has_file(folder, ".metadata")) return read_dcp(folder);
  if (has_ending(folder, ".safetensors")) return read_safetensors(folder);
  if (has_file(folder, "pytorch_model.bin") || has_file(folder, "pytorch_model.bin.index.json")) {
    return read_torch(folder);
  }
  refuse(folder.string(),
         "a ZeRO-3 checkpoint (with latest, or *_model_states.pt), a universal one (with zero/), a "
         "model of safetensors or pytorch_model.bin, or a DCP folder (with .metadata)",
         "none of these", "check the path");
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
  formats::throw_format_error(file, -1, expected, got, remedy);
}

void refuse_kind(const std::string& folder, const std::string& got) {
  refuse(folder, "an output folder without a checkpoint of another kind", got,
         "choose another output");
}

bool is_file_name(const std::string& text) {
  const bool plain = std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<uint8_t>(c) < 0x20 || c == '/' || c == 0x7f;
  });
  return plain && !text.empty() && text != "." && text != "..";
}

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"ZeRO-3", "universal", "safetensors", "torch", "DCP"};
  return kNames[static_cast<int>(kind)];
}

const char* name_of(TensorRole role) {
  constexpr const char* kNames[] = {"", "muon", "adamw", "frozen", "buffer"};
  return kNames[static_cast<int>(role)];
}

const NamedTensor* Checkpoint::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const NamedTensor& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

TorchFilePtr open_torch_file(const fs::path& path) {
  return std::make_shared<const formats::TorchFile>(path.string());
}

Checkpoint open_checkpoint(const std::string& path, const std::string& tag) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) refuse(path, "a file or folder", "nothing there", "check the path");
  Checkpoint checkpoint;
  if (fs::is_directory(status)) {
    checkpoint = open_folder(path, tag);
  } else if (fs::path(path).extension() == ".safetensors" ||
             path.ends_with(".safetensors.index.json")) {
    checkpoint = read_safetensors(path);
  } else {
    checkpoint = read_torch(path);
  }
  checkpoint.path = path;
  check_sizes(checkpoint);
  return checkpoint;
}

}  // namespace zeromuon::convert
