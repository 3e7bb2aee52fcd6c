#include "zero3/convert/tensor_reader.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/base/check.h"

namespace zeromuon::convert {
namespace {

// Element by element through the strides, from the whole range.
void read_strided(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out) {
  const ByteRange& range = source.ranges.at(0);
  const auto size = static_cast<size_t>(formats::size_of(source.type));
  const std::vector<uint8_t> whole = range.file->read(range.offset, range.bytes);
  std::vector<int64_t> index(source.shape.size());
  int64_t rest = begin, offset = 0;
  for (size_t d = index.size(); d-- > 0;) {
    index[d] = rest % source.shape[d];
    rest /= source.shape[d];
    offset += index[d] * source.strides[d];
  }
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(out + static_cast<size_t>(i) * size,
                whole.data() + static_cast<size_t>(offset) * size, size);
    for (size_t d = index.size(); d-- > 0;) {
      offset += source.strides[d];
      if (++index[d] < source.shape[d]) break;
      offset -= source.strides[d] * source.shape[d];
      index[d] = 0;
    }
  }
}

// Bytes from the first to the last element of a view.
uint64_t extent_of(const formats::StoredTensor& tensor) {
  int64_t last = 0;
  for (size_t d = 0; d < tensor.shape.size(); ++d)
    last += (tensor.shape[d] - 1) * tensor.strides[d];
  return static_cast<uint64_t>((last + 1) * formats::size_of(tensor.type));
}

}  // namespace

void read_elements(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out) {
  if (!source.strides.empty()) {
    read_strided(source, begin, count, out);
    return;
  }
  const int64_t size = formats::size_of(source.type);
  auto skip = static_cast<uint64_t>(begin * size), left = static_cast<uint64_t>(count * size);
  for (const ByteRange& range : source.ranges) {
    if (left == 0) return;
    if (skip >= range.bytes) {
      skip -= range.bytes;
      continue;
    }
    const uint64_t bytes = std::min(left, range.bytes - skip);
    range.file->read(range.offset + skip, out, bytes);
    out += bytes;
    left -= bytes;
    skip = 0;
  }
  invariant(left == 0, "a tensor's ranges are ", left, " bytes short");
}

TensorSource source_of(const formats::TorchFile& file, const formats::StoredTensor& tensor) {
  TensorSource out{tensor.type, tensor.shape, {}, {}};
  if (tensor.numel() == 0) return out;
  const uint64_t bytes =
      tensor.contiguous() ? static_cast<uint64_t>(tensor.bytes()) : extent_of(tensor);
  out.ranges.push_back({file.shared_file(), tensor.file_offset, bytes});
  if (!tensor.contiguous()) out.strides = tensor.strides;
  return out;
}

int64_t TensorSource::numel() const { return formats::numel_of(shape); }

}  // namespace zeromuon::convert
