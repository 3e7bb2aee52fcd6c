// Which implementation of the element-wise kernels runs.
#pragma once

#include <string>

#include "csrc/base/cpu.h"
#include "csrc/ops/kernel_table.h"

namespace zeromuon::ops {

// kAuto is the fastest of the paths after it that this CPU has. kReference to kAvx512Bf16 give the
// same bits (Note [Same bits everywhere]). kOneDnn is for comparison: momentum and AdamW in
// oneDNN's primitives; apply and the casts, which gain nothing there, are those of kAuto.
enum class CpuKernels : uint8_t {
  kAuto,
  kReference,
  kGeneric,
  kAvx2,
  kAvx512,
  kAvx512Bf16,
  kOneDnn
};
constexpr int kCpuKernels = 7;

const char* name_of(CpuKernels kernels);

// Raises ValueError naming the valid names.
CpuKernels parse_cpu_kernels(const std::string& name);

// Why they cannot run here, for people; empty: they can.
std::string why_not(CpuKernels kernels);

// What kAuto stands for; other values unchanged. Raises ValueError when they cannot run here.
CpuKernels resolve(CpuKernels kernels);

// Of a value that can run here.
const KernelTable& table_of(CpuKernels kernels);

}  // namespace zeromuon::ops
