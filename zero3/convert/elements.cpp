#include "zero3/convert/elements.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "csrc/base/check.h"
#include "csrc/base/dtype.h"

namespace zeromuon::convert {
namespace {

using formats::ElementType;

template <typename T>
struct Tag {
  using type = T;
};

// Calls body(Tag<T>) with the C++ type of a convertible element; false for others.
template <typename Body>
bool with_float(ElementType type, const Body& body) {
  switch (type) {
    case ElementType::kFloat64:
      body(Tag<double>());
      return true;
    case ElementType::kFloat32:
      body(Tag<float>());
      return true;
    case ElementType::kFloat16:
      body(Tag<Float16>());
      return true;
    case ElementType::kBFloat16:
      body(Tag<BFloat16>());
      return true;
    default:
      return false;
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
  T value;
  std::memcpy(&value, static_cast<const char*>(in) + index * static_cast<int64_t>(sizeof value),
              sizeof value);
  return static_cast<double>(value);
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
  const auto nothing = [](auto) {};
  return from == to || (with_float(from, nothing) && with_float(to, nothing));
}

int64_t convert_elements(ElementType from, const void* in, ElementType to, void* out, int64_t count,
                         double factor) {
  if (from == to && factor == 1) {
    if (in != out) std::memcpy(out, in, static_cast<size_t>(count * formats::size_of(from)));
    return 0;
  }
  bool done = false;
  int64_t lost = 0;
  with_float(from, [&](auto source) {
    done = with_float(to, [&](auto target) {
      const auto* typed_in = static_cast<const typename decltype(source)::type*>(in);
      auto* typed_out = static_cast<typename decltype(target)::type*>(out);
      lost = overflows<typename decltype(target)::type>(typed_in, count, factor);
      if (factor == 1) {
        convert_plain(typed_in, typed_out, count);
      } else {
        convert(typed_in, typed_out, count, factor);
      }
    });
  });
  invariant(done, "no conversion from ", formats::name_of(from), " to ", formats::name_of(to));
  return lost;
}

double value_of(ElementType type, const void* in, int64_t index) {
  double out = 0;
  const bool floating = with_float(type, [&](auto tag) {
    out = widen(static_cast<const typename decltype(tag)::type*>(in)[index]);
  });
  if (floating) return out;
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
    case ElementType::kComplex64: {
      const auto* parts = static_cast<const float*>(in) + 2 * index;
      return std::hypot(static_cast<double>(parts[0]), static_cast<double>(parts[1]));
    }
    default: {
      const auto* parts = static_cast<const double*>(in) + 2 * index;
      return std::hypot(parts[0], parts[1]);
    }
  }
}

ElementSums sums_of(ElementType type, const void* in, int64_t count) {
  ElementSums out;
  const bool floating = with_float(type, [&](auto tag) {
    out = sums(static_cast<const typename decltype(tag)::type*>(in), count);
  });
  for (int64_t i = 0; !floating && i < count; ++i) {
    const double value = value_of(type, in, i);
    out.add(sums(&value, 1));
  }
  return out;
}

}  // namespace zeromuon::convert
