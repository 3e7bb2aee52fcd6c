// Any bytes as a pickle: read or refused; what is read is written and read again to the same text.
#include <cstdlib>

#include "csrc/formats/format_error.h"
#include "csrc/formats/pickle.h"
#include "tests/fuzz/counted_memory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace zeromuon::formats;
  const MemoryBound bound(bytes);
  std::vector<uint8_t> written;
  std::string text;
  try {
    const PickleGraph graph = read_pickle(data, bytes, "fuzz", 0);
    if (graph.size() > 3 * bytes + 3) std::abort();  // memory in proportion to the pickle
    text = graph.describe(graph.root(), 2000);
    written = write_pickle(graph, graph.root(), "fuzz");
  } catch (const FormatError&) {
    return 0;
  }
  const PickleGraph again = read_pickle(written.data(), written.size(), "written", 0);
  if (again.describe(again.root(), 2000) != text) std::abort();
  return 0;
}
