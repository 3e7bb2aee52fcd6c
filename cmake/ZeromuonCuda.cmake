# Decides whether the CUDA code is built, from ZEROMUON_CUDA, and enables the language.
# Sets ZEROMUON_WITH_CUDA, and where it is OFF the reason, cuda_missing.

set(ZEROMUON_WITH_CUDA OFF)
if(ZEROMUON_CUDA STREQUAL "OFF")
  set(cuda_missing "ZEROMUON_CUDA was OFF; leave it out")
  message(STATUS "CUDA: off, because ${cuda_missing}")
  return()
endif()

# Why CUDA code cannot be built with nvcc, in `reason`; empty if it can.
function(explain_missing_cuda nvcc reason)
  set(${reason} "" PARENT_SCOPE)
  if(ZEROMUON_TORCH_CUDA AND NOT TARGET torch_wheel::cublas)
    set(${reason} "torch's libcublas.so.${ZEROMUON_TORCH_CUDA_MAJOR} was not found beside it; install torch with pip" PARENT_SCOPE)
    return()
  endif()
  if(NOT nvcc)
    set(${reason} "no nvcc was found; install the CUDA toolkit or set CUDACXX" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE text ERROR_QUIET)
  string(REGEX MATCH "release (([0-9]+)\\.[0-9]+)" _ "${text}")
  # Two CUDA runtimes of different major versions would share one process, and a newer toolkit's code may want what
  # torch's runtime does not have.
  if(NOT CMAKE_MATCH_2 STREQUAL ZEROMUON_TORCH_CUDA_MAJOR OR CMAKE_MATCH_1 VERSION_GREATER ZEROMUON_TORCH_CUDA)
    set(${reason} "torch is built for CUDA '${ZEROMUON_TORCH_CUDA}' and ${nvcc} is of CUDA '${CMAKE_MATCH_1}'; \
install a toolkit of the same major version that is not newer than torch's" PARENT_SCOPE)
  endif()
endfunction()

find_program(ZEROMUON_NVCC NAMES "$ENV{CUDACXX}" nvcc PATHS /usr/local/cuda/bin)
mark_as_advanced(ZEROMUON_NVCC)
explain_missing_cuda("${ZEROMUON_NVCC}" cuda_missing)
if(cuda_missing)
  if(ZEROMUON_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: off, because ${cuda_missing}")
    return()
  endif()
  message(FATAL_ERROR "ZEROMUON_CUDA is ${ZEROMUON_CUDA}, but ${cuda_missing}; or set ZEROMUON_CUDA=OFF")
endif()

set(CMAKE_CUDA_COMPILER "${ZEROMUON_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES "${ZEROMUON_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(ZEROMUON_WITH_CUDA ON)
message(STATUS "CUDA: on, ${ZEROMUON_NVCC}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
