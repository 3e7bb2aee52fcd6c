// Any bytes as a safetensors file: opened or refused; tensors of an opened one lie inside it.
#include <cstdlib>

#include "csrc/formats/format_error.h"
#include "csrc/formats/safetensors.h"
#include "tests/fuzz/counted_memory.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace zeromuon::formats;
  const MemoryFile file(data, bytes);
  const MemoryBound bound(bytes);
  try {
    const SafetensorsFile opened(file.path());
    for (const SafetensorsEntry& entry : opened.entries()) {
      if (entry.file_offset > bytes || entry.bytes > bytes - entry.file_offset) std::abort();
    }
  } catch (const FormatError&) {
  }
  return 0;
}
