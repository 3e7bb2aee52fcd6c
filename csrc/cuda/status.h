// How CUDA's errors leave csrc/cuda. For its sources only: it brings CUDA's headers.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace zeromuon::cuda {

// What the runtime calls an error, for people.
std::string describe(cudaError_t status);

// Raises std::runtime_error that says what failed and why.
void check(cudaError_t status, const char* what);

}  // namespace zeromuon::cuda
