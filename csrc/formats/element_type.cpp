#include "csrc/formats/element_type.h"

namespace zeromuon::formats {
namespace {

struct Names {
  const char* name;
  const char* safetensors;
  const char* storage;
  int64_t bytes;
  bool floating;
};

constexpr Names kNames[kElementTypes] = {
    {"float64", "F64", "DoubleStorage", 8, true},
    {"float32", "F32", "FloatStorage", 4, true},
    {"float16", "F16", "HalfStorage", 2, true},
    {"bfloat16", "BF16", "BFloat16Storage", 2, true},
    {"float8_e4m3fn", "F8_E4M3", "", 1, true},
    {"float8_e5m2", "F8_E5M2", "", 1, true},
    {"complex64", "C64", "ComplexFloatStorage", 8, false},
    {"complex128", "", "ComplexDoubleStorage", 16, false},
    {"int64", "I64", "LongStorage", 8, false},
    {"int32", "I32", "IntStorage", 4, false},
    {"int16", "I16", "ShortStorage", 2, false},
    {"int8", "I8", "CharStorage", 1, false},
    {"uint64", "U64", "", 8, false},
    {"uint32", "U32", "", 4, false},
    {"uint16", "U16", "", 2, false},
    {"uint8", "U8", "ByteStorage", 1, false},
    {"bool", "BOOL", "BoolStorage", 1, false},
};

const Names& of(ElementType type) { return kNames[static_cast<int>(type)]; }

bool find(const std::string& name, const char* Names::*column, ElementType& out) {
  for (int i = 0; i < kElementTypes && !name.empty(); ++i) {
    if (name != kNames[i].*column) continue;
    out = static_cast<ElementType>(i);
    return true;
  }
  return false;
}

}  // namespace

int64_t size_of(ElementType type) { return of(type).bytes; }
const char* name_of(ElementType type) { return of(type).name; }
const char* safetensors_name_of(ElementType type) { return of(type).safetensors; }
const char* storage_name_of(ElementType type) { return of(type).storage; }
bool is_floating(ElementType type) { return of(type).floating; }

bool parse_element_type(const std::string& name, ElementType& out) {
  constexpr const char* kShort[][2] = {
      {"fp32", "float32"}, {"fp16", "float16"},   {"bf16", "bfloat16"}, {"float", "float32"},
      {"half", "float16"}, {"double", "float64"}, {"fp64", "float64"},  {"long", "int64"}};
  for (const auto& [alias, full] : kShort) {
    if (name == alias) return find(full, &Names::name, out);
  }
  return find(name, &Names::name, out);
}

bool parse_safetensors_name(const std::string& name, ElementType& out) {
  return find(name, &Names::safetensors, out);
}

bool parse_storage_name(const std::string& name, ElementType& out) {
  return find(name, &Names::storage, out);
}

}  // namespace zeromuon::formats
