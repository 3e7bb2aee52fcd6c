#include "csrc/base/cpu.h"

#include <algorithm>
#include <cstdlib>

#include "csrc/base/check.h"

namespace zeromuon {
namespace {

constexpr const char* kNames[kCpuIsas] = {"generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

CpuIsa of_processor() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx2) return CpuIsa::kGeneric;
  if (!avx512) return CpuIsa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return CpuIsa::kAvx512;
  if (!__builtin_cpu_supports("amx-bf16")) return CpuIsa::kAvx512Bf16;
  return CpuIsa::kAmxBf16;
#else
  return CpuIsa::kGeneric;
#endif
}

CpuIsa limited() {
  const char* limit = std::getenv("ZEROMUON_MAX_CPU_ISA");
  if (limit == nullptr || *limit == '\0') return of_processor();
  return std::min(of_processor(),
                  static_cast<CpuIsa>(index_of(kNames, limit, "ZEROMUON_MAX_CPU_ISA")));
}

}  // namespace

const char* name_of(CpuIsa isa) { return kNames[static_cast<int>(isa)]; }

const char* name_of(CpuFamily family) {
  constexpr const char* kFamilies[] = {"other", "amd", "intel"};
  return kFamilies[static_cast<int>(family)];
}

CpuFamily cpu_family() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("amd")) return CpuFamily::kAmd;
  if (__builtin_cpu_is("intel")) return CpuFamily::kIntel;
#endif
  return CpuFamily::kOther;
}

CpuIsa parse_cpu_isa(const std::string& name) {
  return static_cast<CpuIsa>(index_of(kNames, name, "CPU instruction set"));
}

CpuIsa max_cpu_isa() {
  static const CpuIsa isa = limited();
  return isa;
}

}  // namespace zeromuon
