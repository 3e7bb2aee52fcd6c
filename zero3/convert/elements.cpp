#include "zero3/convert/elements.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "csrc/base/dtype.h"

namespace zeromuon::convert {
namespace {

// What body() returns of a zero of the C++ type of a convertible element; `otherwise` for others.
template <typename Body, typename Result>
Result with_float(ElementType type, Result otherwise, const Body& body) {
  switch (type) {
    case ElementType::kFloat64:
      return body(double{});
    case ElementType::kFloat32:
      return body(float{});
    case ElementType::kFloat16:
      return body(Float16{});
    case ElementType::kBFloat16:
      return body(BFloat16{});
    default:
      return otherwise;
  }
}

double widen(double value) { return value; }
template <typename T>
double widen(T value) {
  return decode(value);
}

template <typename From, typename To>
void convert(const From* in, To* out, int64_t count, double factor) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<To, double>) {
      out[i] = widen(in[i]) * factor;
    } else if constexpr (std::is_same_v<From, double>) {
      encode(static_cast<float>(in[i] * factor), out[i]);
    } else {
      encode(static_cast<float>(decode(in[i]) * factor), out[i]);
    }
  }
}

// Without a factor everything stays in fp32, which the compiler turns into vector code.
template <typename From, typename To>
void convert_plain(const From* in, To* out, int64_t count) {
  if constexpr (std::is_same_v<From, double> || std::is_same_v<To, double>) {
    convert(in, out, count, 1);
  } else {
    for (int64_t i = 0; i < count; ++i) encode(decode(in[i]), out[i]);
  }
}

// Finite elements that are beyond the range of the type that they are rounded to.
template <typename To, typename From>
int64_t overflows(const From* in, int64_t count, double factor) {
  int64_t lost = 0;
  if constexpr (!std::is_same_v<To, double>) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = widen(in[i]);
      lost += std::isfinite(value) && non_finite_as<To>(static_cast<float>(value * factor)) ? 1 : 0;
    }
  }
  return lost;
}

template <typename T>
ElementSums sums(const T* in, int64_t count) {
  ElementSums out;
  double lanes[4] = {};  // so that additions do not wait for each other
  for (int64_t i = 0; i < count; ++i) {
    const double value = widen(in[i]);
    const bool finite = std::isfinite(value);
    lanes[i % 4] += finite ? value * value : 0;
    if (finite) continue;
    ++(std::isnan(value) ? out.nan : out.infinite);
  }
  out.squares = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  return out;
}

template <typename T>
double integer_at(const void* in, int64_t index) {
  return static_cast<double>(static_cast<const T*>(in)[index]);
}

template <typename T>
double complex_at(const void* in, int64_t index) {
  const auto* parts = static_cast<const T*>(in) + 2 * index;
  return std::hypot(static_cast<double>(parts[0]), static_cast<double>(parts[1]));
}

// 1 sign, `exponent_bits`, the rest mantissa; E4M3 has no infinity.
double float8(uint8_t bits, int exponent_bits, bool has_infinity) {
  const int mantissa_bits = 7 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x80 ? -1 : 1, unit = std::ldexp(1, -mantissa_bits);
  if (has_infinity && exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * INFINITY : NAN;
  }
  if (!has_infinity && (bits & 0x7f) == 0x7f) return NAN;
  if (exponent == 0) return sign * mantissa * unit * std::ldexp(1, 1 - bias);
  return sign * (1 + mantissa * unit) * std::ldexp(1, exponent - bias);
}

}  // namespace

bool can_convert(ElementType from, ElementType to) {
  const auto yes = [](auto) { return true; };
  return from == to || (with_float(from, false, yes) && with_float(to, false, yes));
}

int64_t convert_elements(ElementType from, const void* in, ElementType to, void* out, int64_t count,
                         double factor) {
  if (from == to && factor == 1) {
    if (in != out) std::memcpy(out, in, static_cast<size_t>(count * size_of(from)));
    return 0;
  }
  constexpr int64_t kNoConversion = -1;
  const int64_t lost = with_float(from, kNoConversion, [&](auto source) {
    return with_float(to, kNoConversion, [&](auto target) {
      const auto* typed_in = static_cast<const decltype(source)*>(in);
      auto* typed_out = static_cast<decltype(target)*>(out);
      const int64_t beyond = overflows<decltype(target)>(typed_in, count, factor);
      if (factor == 1) {
        convert_plain(typed_in, typed_out, count);
      } else {
        convert(typed_in, typed_out, count, factor);
      }
      return beyond;
    });
  });
  invariant(lost != kNoConversion, "no conversion from ", name_of(from), " to ", name_of(to));
  return lost;
}

double value_of(ElementType type, const void* in, int64_t index) {
  switch (type) {
    case ElementType::kInt64:
      return integer_at<int64_t>(in, index);
    case ElementType::kInt32:
      return integer_at<int32_t>(in, index);
    case ElementType::kInt16:
      return integer_at<int16_t>(in, index);
    case ElementType::kInt8:
      return integer_at<int8_t>(in, index);
    case ElementType::kUInt64:
      return integer_at<uint64_t>(in, index);
    case ElementType::kUInt32:
      return integer_at<uint32_t>(in, index);
    case ElementType::kUInt16:
      return integer_at<uint16_t>(in, index);
    case ElementType::kUInt8:
    case ElementType::kBool:
      return integer_at<uint8_t>(in, index);
    case ElementType::kFloat8E4M3:
      return float8(static_cast<const uint8_t*>(in)[index], 4, false);
    case ElementType::kFloat8E5M2:
      return float8(static_cast<const uint8_t*>(in)[index], 5, true);
    case ElementType::kComplex64:
      return complex_at<float>(in, index);
    case ElementType::kComplex128:
      return complex_at<double>(in, index);
    default:
      return with_float(type, 0.0, [&](auto zero) {
        return widen(static_cast<const decltype(zero)*>(in)[index]);
      });
  }
}

ElementSums sums_of(ElementType type, const void* in, int64_t count) {
  ElementSums out;
  for (int64_t i = 0; !can_convert(type, ElementType::kFloat32) && i < count; ++i) {
    const double value = value_of(type, in, i);
    out.add(sums(&value, 1));
  }
  return with_float(type, out,
                    [&](auto zero) { return sums(static_cast<const decltype(zero)*>(in), count); });
}

}  // namespace zeromuon::convert
