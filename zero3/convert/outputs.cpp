#include "zero3/convert/outputs.h"

#include <fnmatch.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "csrc/formats/output_file.h"

namespace zeromuon::convert {
namespace {

constexpr const char* kJournal = ".zeromuon-journal";

// FNV-1a: tells runs apart, and is no protection against anyone.
uint64_t hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037ull;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return hash;
}

// Written in place, a run that is interrupted would leave neither the old checkpoint nor the new.
void refuse_sources(const Checkpoint& source, const std::vector<std::string>& outputs) {
  std::error_code ignored;
  std::set<std::string> sources;
  for (const std::string& file : source.files) {
    sources.insert(fs::weakly_canonical(file, ignored).string());
  }
  for (const std::string& output : outputs) {
    if (!sources.contains(fs::weakly_canonical(output, ignored).string())) continue;
    throw_format_error(output, -1, "an output apart from the source", "a file of the source itself",
                       "choose another output (or, of ZeRO-3, another --new-tag), also "
                       "with --force; remove the source when you have looked at it");
  }
}

// The folder of a ZeRO-3 checkpoint's ranks' files: what else lies in it makes another checkpoint
// of it, or is taken for a part of it.
void refuse_inside(const Checkpoint& source, const std::vector<std::string>& outputs) {
  if (source.kind != Kind::kZero3) return;
  std::error_code ignored;
  std::set<fs::path> tags;
  for (const std::string& file : source.files) {
    if (!file.ends_with("_states.pt")) continue;
    tags.insert(fs::weakly_canonical(fs::path(file).parent_path(), ignored));
  }
  for (const std::string& output : outputs) {
    for (fs::path above = fs::weakly_canonical(output, ignored).parent_path();
         above != above.parent_path(); above = above.parent_path()) {
      if (!tags.contains(above)) continue;
      throw_format_error(output, -1, "an output apart from the source",
                         "a place in the folder of the ranks' files of the source",
                         "choose another output");
    }
  }
}

uint64_t size_on_disk(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? UINT64_MAX : size;
}

}  // namespace

Journal::Journal(const std::string& place, const std::string& what, const Checkpoint& source,
                 const RunOptions& run, const std::vector<std::string>& outputs) {
  refuse_sources(source, outputs);
  refuse_inside(source, outputs);
  const bool one_file = outputs.size() == 1 && outputs[0] == place;
  path_ = one_file ? place + kJournal : (fs::path(place) / kJournal).string();
  if (!one_file) lock(place);
  std::string identity = what;
  for (const std::string& file : source.files) {
    identity += "\n" + file + " " + InputFile(file).fingerprint();
  }
  head_ = concat("zeromuon ckpt journal 1 ", hash_of(identity), "\n");
  if (run.resume) read_old(outputs);
  std::error_code ignored;
  for (const std::string& output : outputs) {
    if (run.force || finished_.contains(output) || !fs::exists(output, ignored)) continue;
    throw_format_error(
        output, -1, "no file of this name", "one that exists",
        fs::exists(path_, ignored)
            ? "an earlier run was interrupted: go on with --resume, or replace it with --force"
            : "choose another output, or say --force to replace it");
  }
}

void Journal::lock(const fs::path& folder) {
  locks_.push_back(std::make_unique<formats::FolderLock>(folder.string()));
  std::error_code ignored;
  fs::path above = fs::weakly_canonical(folder, ignored);
  for (int level = 0; level < 2; ++level) {
    above = above.parent_path();
    if (!fs::is_regular_file(above / "run.json", ignored)) continue;
    locks_.push_back(std::make_unique<formats::FolderLock>(above.string()));
  }
}

// Lines "bytes path"; the first one tells which run it was.
void Journal::read_old(const std::vector<std::string>& outputs) {
  std::error_code ignored;
  if (!fs::exists(path_, ignored)) return;
  const std::string old = formats::read_text(path_, 64 << 20);
  if (!old.starts_with(head_)) {
    throw_format_error(path_, 0, "the journal of this run",
                       "that of a run with other options or other sources",
                       "repeat the options of then, or start again with --force");
  }
  std::istringstream lines(old.substr(head_.size()));
  const std::set<std::string> known(outputs.begin(), outputs.end());
  uint64_t bytes = 0;
  std::string output;
  while (lines >> bytes && std::getline(lines >> std::ws, output)) {
    if (!known.contains(output) || size_on_disk(output) != bytes) continue;
    finished_.insert(output);
    kept_lines_ += concat(bytes, " ", output, "\n");
  }
  // A file whose line was lost with the run is written again.
  for (const std::string& planned : outputs) {
    if (!finished_.contains(planned)) fs::remove(planned, ignored);
  }
}

void Journal::begin() {
  formats::write_text(path_, head_ + kept_lines_, true);
  lines_.open(path_, std::ios::app);
}

void Journal::add(const std::string& output) {
  lines_ << size_on_disk(output) << " " << output << std::endl;
  finished_.insert(output);
}

void Journal::give_up() {
  if (finished_.empty()) remove();
}

void Journal::remove() {
  std::error_code ignored;
  lines_.close();
  if (fs::remove(path_, ignored)) formats::sync_folder(fs::path(path_).parent_path().string());
}

NodeId TorchOutput::add_tensor(Block block, const std::vector<int64_t>& shape, bool requires_grad,
                               const std::vector<int64_t>& strides) {
  const ElementType type = block.type;
  const int storage = writer_.add_storage(type, static_cast<uint64_t>(block.bytes()));
  blocks_.push_back(std::move(block));
  storages_.push_back(storage);
  return writer_.add_tensor(storage, type, shape, 0, strides, requires_grad);
}

void TorchOutput::begin(NodeId root) {
  for (const auto& copied : writer_.copied()) {
    const TensorSource bytes = source_at(ElementType::kUInt8, {static_cast<int64_t>(copied.bytes)},
                                         {copied.file, copied.file_offset, copied.bytes});
    blocks_.push_back(block_of(bytes, bytes.type));
    storages_.push_back(copied.storage);
  }
  writer_.begin(root);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].numel() == 0) writer_.set_crc(storages_[i], 0);
  }
}

void TorchOutput::write(int block, uint64_t offset, const void* data, uint64_t bytes) {
  writer_.write(storages_.at(block), offset, data, bytes);
}

void TorchOutput::set_crc(int block, uint32_t crc) { writer_.set_crc(storages_.at(block), crc); }

std::string journal_in(const std::string& folder) {
  std::error_code ignored;
  const fs::path path = fs::path(folder) / kJournal;
  return fs::exists(path, ignored) ? path.string() : "";
}

std::vector<std::string> paths_of(const std::vector<PlannedOutput>& outputs) {
  std::vector<std::string> paths;
  for (const PlannedOutput& output : outputs) paths.push_back(output.path);
  return paths;
}

void write_journalled(std::vector<PlannedOutput> outputs, Journal& journal, const RunOptions& run,
                      OutputReport& report) {
  report.files = paths_of(outputs);
  report.kept_files = journal.kept();
  std::erase_if(outputs, [&](const PlannedOutput& o) { return journal.finished(o.path); });
  for (const PlannedOutput& output : outputs) report.bytes_written += output.bytes;
  journal.begin();
  try {
    write_outputs(std::move(outputs), run, [&](const std::string& path) { journal.add(path); });
  } catch (...) {
    journal.give_up();
    throw;
  }
  std::set<std::string>
      folders;  // also of files that were kept: whoever wrote them may not have come to this
  for (const std::string& path : report.files) {
    const fs::path folder = fs::path(path).parent_path();
    folders.insert(folder.string());
    folders.insert(folder.parent_path().string());
  }
  for (const std::string& folder : folders) formats::sync_folder(folder);
}

Block block_of(const TensorSource& source, ElementType type) {
  Block block;
  block.type = type;
  block.pieces.push_back({source, 0, source.numel(), 1});
  return block;
}

bool matches_any(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    require(!pattern.empty(), "pattern: expected a glob, got an empty text");
    return name == pattern || ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
  });
}

std::vector<std::string> verbs_of(Kind kind) {
  switch (kind) {
    case Kind::kZero3:
      return {"inspect", "verify", "diff", "export", "reshard", "universal", "convert-optimizer"};
    case Kind::kUniversal:
      return {"inspect", "verify", "diff", "export", "reshard", "convert-optimizer"};
    case Kind::kDcp:
      return {"inspect", "export"};
    case Kind::kSafetensors:
    case Kind::kTorch:
      return {"inspect", "verify", "diff", "export"};
  }
  throw_internal_error("a kind of checkpoint without verbs");
}

void check_verb(const Checkpoint& checkpoint, const std::string& verb) {
  const std::vector<std::string> verbs = verbs_of(checkpoint.kind);
  if (std::find(verbs.begin(), verbs.end(), verb) != verbs.end()) {
    const bool copies = verb != "inspect" && verb != "verify" && verb != "diff";
    const auto misplaced = copies ? misplaced_files(checkpoint) : std::vector<formats::Finding>();
    if (!misplaced.empty()) throw formats::FormatError(misplaced.front());
    return;
  }
  std::string possible;
  for (const std::string& v : verbs) possible += (possible.empty() ? "" : ", ") + v;
  throw_value_error(concat(checkpoint.path, ": a ", name_of(checkpoint.kind),
                           " checkpoint goes with ", possible, "; not with ", verb));
}

}  // namespace zeromuon::convert
