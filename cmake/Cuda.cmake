# ZEROMUON_CUDA: AUTO (where nvcc is), ON or OFF. Sets ZEROMUON_WITH_CUDA.

set(ZEROMUON_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE ZEROMUON_CUDA PROPERTY STRINGS AUTO ON OFF)
set(ZEROMUON_WITH_CUDA OFF)

if(NOT ZEROMUON_CUDA STREQUAL OFF)
  find_program(ZEROMUON_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(ZEROMUON_NVCC)
    set(ZEROMUON_WITH_CUDA ON)
  elseif(ZEROMUON_CUDA STREQUAL ON)
    message(FATAL_ERROR "ZEROMUON_CUDA is ON and nvcc was not found; put the CUDA Toolkit's bin "
                        "directory on PATH, or set ZEROMUON_CUDA=OFF")
  endif()
endif()

if(ZEROMUON_WITH_CUDA)
  set(CMAKE_CUDA_COMPILER "${ZEROMUON_NVCC}")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  enable_language(CUDA)
  # CMake 3.25 does not know the C++20 dialect of nvcc.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
endif()
message(STATUS "CUDA kernels: ${ZEROMUON_WITH_CUDA}")
