// Which instruction sets the kernels may use here.
#pragma once

#include <cstdint>
#include <string>

namespace zeromuon {

// Each level includes those before it. kAvx2: AVX2, FMA and F16C. kAvx512: F, BW, DQ and VL.
enum class CpuIsa : uint8_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
constexpr int kCpuIsas = 5;

const char* name_of(CpuIsa isa);

// Who makes the processor: what is quick on one family need not be on another of the same
// instruction sets.
enum class CpuFamily : uint8_t { kOther, kAmd, kIntel };

const char* name_of(CpuFamily family);
CpuFamily cpu_family();

// Raises ValueError naming the valid names.
CpuIsa parse_cpu_isa(const std::string& name);

// The highest level that both the processor and the environment variable ZEROMUON_MAX_CPU_ISA (a
// name of the list; absent: no limit) allow. Decided at the first call; raises ValueError when the
// variable holds another word.
CpuIsa max_cpu_isa();

inline bool cpu_can(CpuIsa isa) { return isa <= max_cpu_isa(); }

}  // namespace zeromuon
