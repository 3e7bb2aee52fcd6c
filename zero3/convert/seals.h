// Seals: by which a file of a checkpoint is known from any other of its name.
#pragma once

#include <filesystem>
#include <string>

namespace zeromuon::convert {

// "LENGTH-CRC": bytes, and the CRC-32 of the last 64 KiB in hexadecimal. There a file of torch.save
// has the CRCs of its records, and a digest of all. Raises FormatError.
std::string seal_of(const std::string& path);

// Raises FormatError where the marker in `folder` has a seal for a file there, and that has
// another: it is of another step, rank or run. Without a marker, or seals in it, nothing is known.
void check_seals(const std::filesystem::path& folder);

}  // namespace zeromuon::convert
