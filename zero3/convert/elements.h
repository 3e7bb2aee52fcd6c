// Conversions between stored element types.
#pragma once

#include "zero3/convert/checkpoint.h"
namespace zeromuon::convert {

// float64, float32, float16 and bfloat16 convert into each other.
bool can_convert(ElementType from, ElementType to);

// `out` may be `in` when both types are equal. Rounds to nearest, ties to even. factor: multiplies
// floating elements, in fp64. Returns how many finite elements became infinite.
int64_t convert_elements(ElementType from, const void* in, ElementType to, void* out, int64_t count,
                         double factor);

// Sums over elements; integers count as finite.
struct ElementSums {
  int64_t nan = 0, infinite = 0;
  double squares = 0;  // of the finite ones

  void add(const ElementSums& other) {
    nan += other.nan;
    infinite += other.infinite;
    squares += other.squares;
  }
};
ElementSums sums_of(ElementType type, const void* in, int64_t count);

// One element as fp64; integers of 64 bits are rounded.
double value_of(ElementType type, const void* in, int64_t index);

}  // namespace zeromuon::convert
