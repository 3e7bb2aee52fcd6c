#include <algorithm>
#include <cstring>
#include <vector>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {
namespace {

// Element by element through the strides, from the whole range.
void read_strided(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out) {
  const ByteRange& range = source.ranges.at(0);
  const auto size = static_cast<size_t>(size_of(source.type));
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
uint64_t extent_of(const StoredTensor& tensor) {
  int64_t last = 0;
  for (size_t d = 0; d < tensor.shape.size(); ++d)
    last += (tensor.shape[d] - 1) * tensor.strides[d];
  return static_cast<uint64_t>((last + 1) * size_of(tensor.type));
}

}  // namespace

std::vector<ByteRange> ranges_of(const TensorSource& source, int64_t begin, int64_t count) {
  std::vector<ByteRange> out;
  const auto size = static_cast<uint64_t>(size_of(source.type));
  uint64_t skip = static_cast<uint64_t>(begin) * size, left = static_cast<uint64_t>(count) * size;
  for (const ByteRange& range : source.ranges) {
    if (left == 0) break;
    if (skip >= range.bytes) {
      skip -= range.bytes;
      continue;
    }
    const uint64_t bytes = std::min(left, range.bytes - skip);
    out.push_back({range.file, range.offset + skip, bytes});
    left -= bytes;
    skip = 0;
  }
  invariant(left == 0, "a tensor's ranges are ", left, " bytes short");
  return out;
}

void read_elements(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out) {
  if (!source.strides.empty()) {
    read_strided(source, begin, count, out);
    return;
  }
  for (const ByteRange& range : ranges_of(source, begin, count)) {
    range.file->read(range.offset, out, range.bytes);
    out += range.bytes;
  }
}

TensorSource source_at(ElementType type, std::vector<int64_t> shape, ByteRange range) {
  TensorSource out{type, std::move(shape), {}, {}};
  if (range.bytes > 0) out.ranges.push_back(std::move(range));
  return out;
}

TensorSource source_of(const TorchFile& file, const StoredTensor& tensor) {
  if (tensor.numel() == 0) return {tensor.type, tensor.shape, {}, {}};
  const bool whole = tensor.contiguous();
  const uint64_t bytes = whole ? static_cast<uint64_t>(tensor.bytes()) : extent_of(tensor);
  TensorSource out =
      source_at(tensor.type, tensor.shape, {file.shared_file(), tensor.file_offset, bytes});
  if (!whole) out.strides = tensor.strides;
  return out;
}

int64_t TensorSource::numel() const { return numel_of(shape); }

}  // namespace zeromuon::convert
