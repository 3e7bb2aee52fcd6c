// Any bytes as a zip archive: opened or refused; records of an opened one lie inside it.
#include <cstdlib>

#include "csrc/formats/format_error.h"
#include "csrc/formats/zip_reader.h"
#include "tests/fuzz/counted_memory.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace zeromuon::formats;
  const MemoryFile file(data, bytes);
  const MemoryBound bound(bytes);
  try {
    const ZipReader zip(std::make_shared<InputFile>(file.path()));
    for (const ZipRecord& record : zip.records()) {
      if (record.data_offset > bytes || record.bytes > bytes - record.data_offset) std::abort();
      zip.read(record, 1 << 20);
    }
  } catch (const FormatError&) {
  }
  return 0;
}
