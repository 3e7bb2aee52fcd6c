#include "csrc/ops/cpu_kernels.h"

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

constexpr const char* kNames[kCpuKernels] = {"auto",   "reference",   "generic", "avx2",
                                             "avx512", "avx512_bf16", "onednn"};

using enum CpuIsa;
constexpr CpuIsa kNeeded[kCpuKernels] = {kGeneric, kGeneric,    kGeneric, kAvx2,
                                         kAvx512,  kAvx512Bf16, kGeneric};

CpuIsa needed_isa(CpuKernels kernels) { return kNeeded[static_cast<int>(kernels)]; }

CpuKernels fastest() {
  for (const CpuKernels k : {CpuKernels::kAvx512Bf16, CpuKernels::kAvx512, CpuKernels::kAvx2}) {
    if (cpu_can(needed_isa(k))) return k;
  }
  return CpuKernels::kGeneric;
}

}  // namespace

const char* name_of(CpuKernels kernels) { return kNames[static_cast<int>(kernels)]; }

CpuKernels parse_cpu_kernels(const std::string& name) {
  return static_cast<CpuKernels>(index_of(kNames, name, "cpu_kernels"));
}

std::string why_not(CpuKernels kernels) {
#ifndef ZEROMUON_WITH_ONEDNN
  if (kernels == CpuKernels::kOneDnn) {
    return "this build has no oneDNN; install libdnnl-dev and rebuild";
  }
#endif
  const CpuIsa isa = needed_isa(kernels);
  if (cpu_can(isa)) return "";
  return concat("needs ", name_of(isa), ", and this CPU or ZEROMUON_MAX_CPU_ISA stops at ",
                name_of(max_cpu_isa()));
}

CpuKernels resolve(CpuKernels kernels) {
  if (kernels == CpuKernels::kAuto) return fastest();
  const std::string reason = why_not(kernels);
  require(reason.empty(), "cpu_kernels: \"", name_of(kernels), "\" cannot run here: ", reason,
          "; \"auto\" would use ", name_of(fastest()));
  return kernels;
}

const KernelTable& table_of(CpuKernels kernels) {
  switch (kernels) {
    case CpuKernels::kReference:
      return reference_kernels();
#if defined(__x86_64__)
    case CpuKernels::kAvx2:
      return avx2_kernels();
    case CpuKernels::kAvx512:
      return avx512_kernels();
    case CpuKernels::kAvx512Bf16:
      return avx512_bf16_kernels();
#endif
    case CpuKernels::kAuto:
    case CpuKernels::kOneDnn:
      return table_of(fastest());
    default:
      return generic_kernels();
  }
}

}  // namespace zeromuon::ops
