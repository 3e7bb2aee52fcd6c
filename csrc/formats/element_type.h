// Element types of stored tensors: torch's and those of safetensors.
#pragma once

#include <cstdint>
#include <string>

namespace zeromuon::formats {

enum class ElementType : uint8_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,
  kFloat8E5M2,
  kComplex64,
  kComplex128,
  kInt64,
  kInt32,
  kInt16,
  kInt8,
  kUInt64,
  kUInt32,
  kUInt16,
  kUInt8,
  kBool,
};
constexpr int kElementTypes = 17;

int64_t size_of(ElementType type);
// float32, bfloat16, ...: torch's name without "torch.".
const char* name_of(ElementType type);
// F32, BF16, ...; empty for types that safetensors lacks.
const char* safetensors_name_of(ElementType type);
// FloatStorage, ...; empty for types that are stored as UntypedStorage.
const char* storage_name_of(ElementType type);
bool is_floating(ElementType type);

// False when the name is unknown.
bool parse_element_type(const std::string& name, ElementType& out);  // also "fp32", "bf16", "fp16"
bool parse_safetensors_name(const std::string& name, ElementType& out);
bool parse_storage_name(const std::string& name, ElementType& out);

}  // namespace zeromuon::formats
