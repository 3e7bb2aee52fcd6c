#include "zero3/convert/seals.h"

#include <algorithm>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "csrc/formats/crc32.h"
#include "csrc/formats/input_file.h"
#include "zero3/convert/entry.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

constexpr uint64_t kSealedBytes = 64 << 10;
constexpr uint64_t kMaxMarkerBytes = 16 << 20;

}  // namespace

std::string seal_of(const std::string& path) {
  const formats::InputFile file(path);
  const uint64_t bytes = std::min(file.size(), kSealedBytes);
  const std::vector<uint8_t> end = file.read(file.size() - bytes, bytes);
  std::ostringstream out;
  out << file.size() << "-" << std::hex << std::setfill('0') << std::setw(8)
      << formats::crc32(0, end.data(), end.size());
  return out.str();
}

void check_seals(const std::filesystem::path& folder) {
  const std::filesystem::path marker = folder / kEntrySchema.marker;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(marker, ignored)) return;
  const auto said =
      nlohmann::json::parse(formats::read_text(marker.string(), kMaxMarkerBytes), nullptr, false);
  const auto seals = said.is_object() ? said.find("files") : said.end();
  if (seals == said.end() || !seals->is_object()) return;
  for (const auto& [name, seal] : seals->items()) {
    const std::filesystem::path file = folder / name;
    if (!formats::is_file_name(name) || !seal.is_string()) continue;
    if (!std::filesystem::is_regular_file(file, ignored)) continue;  // another check's
    const std::string found = seal_of(file.string());
    if (found == seal.get<std::string>()) continue;
    refuse(file.string(),
           "the file that was saved with this checkpoint, of seal " + seal.get<std::string>(),
           "another one, of seal " + found + ": it is damaged, or of another step, rank or run",
           "restore it, or use another checkpoint; where the files are meant to be these, remove " +
               marker.string());
  }
}

}  // namespace zeromuon::convert
