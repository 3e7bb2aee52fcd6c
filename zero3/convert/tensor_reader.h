// Reads elements of a tensor wherever its pieces lie.
#pragma once

#include <cstdint>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

// Elements [begin, begin + count) in row-major order into `out`.
void read_elements(const TensorSource& source, int64_t begin, int64_t count, uint8_t* out);

// A tensor of a torch file.
TensorSource source_of(const formats::TorchFile& file, const formats::StoredTensor& tensor);

}  // namespace zeromuon::convert
