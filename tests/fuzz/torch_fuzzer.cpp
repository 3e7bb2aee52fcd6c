// Any bytes as a torch file, or any pickle inside one whose CRCs are right: opened or refused; what
// is opened is read to the end.
#include "csrc/formats/format_error.h"
#include "csrc/formats/torch_file.h"
#include "tests/csrc/formats/zip_bytes.h"
#include "tests/fuzz/counted_memory.h"
#include "tests/fuzz/memory_file.h"

namespace zeromuon::formats {
namespace {

void read_all(const TorchFile& torch) {
  for (NodeId node = 0; node < torch.graph().size(); ++node) {
    const auto tensor = torch.tensor(node);
    if (tensor && tensor->contiguous()) {
      torch.file().read(tensor->file_offset, static_cast<uint64_t>(tensor->bytes()));
    }
  }
  for (const ZipRecord& record : torch.zip().records()) torch.zip().read(record, 1 << 20);
  torch.graph().describe(torch.root(), 1000);
}

void read_bytes(const uint8_t* data, size_t bytes) {
  const MemoryFile file(data, bytes);
  const MemoryBound bound(bytes);
  try {
    read_all(TorchFile(file.path()));
  } catch (const FormatError&) {
  }
}

}  // namespace
}  // namespace zeromuon::formats

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace zeromuon::formats;
  constexpr uint8_t kPickle = 0x80;  // a torch file begins with "PK"
  if (bytes == 0 || data[0] != kPickle) {
    read_bytes(data, bytes);
    return 0;
  }
  const std::string pickle(reinterpret_cast<const char*>(data), bytes);
  const std::string whole = make_torch_file(pickle, {std::string(48, 'x'), std::string(4, 'y')});
  read_bytes(reinterpret_cast<const uint8_t*>(whole.data()), whole.size());
  return 0;
}
