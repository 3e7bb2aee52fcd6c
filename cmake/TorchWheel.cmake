# The torch wheel of the chosen Python (Python3_EXECUTABLE) as imported targets:
#   torch_wheel::cpu     libtorch_cpu and libc10, with torch's headers
#   torch_wheel::python  the above, libtorch_python and the wheel's pybind11 headers
#   torch_wheel::cublas  cuBLAS, of a CUDA wheel, else ZeromuonCuda.cmake makes it; headers are the toolkit's
#   torch_wheel::blas    the Fortran BLAS that libtorch_cpu exports, without headers
# Sets ZEROMUON_TORCH_LIBRARY_DIRS, ZEROMUON_TORCH_RPATH (relative to an installed
# site-packages/zeromuon) and ZEROMUON_TORCH_CUDA (such as 13.2; empty for a CPU wheel).
#
# find_package(Torch) is not used: it turns CUDA on by itself and fails on CMake 3.25's idea of
# C++20 in CUDA.

set(ZEROMUON_OLDEST_TORCH 2.11)

find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter Development.Module)

execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c
          "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE torch_missing
  ERROR_QUIET)
if(torch_missing)
  message(FATAL_ERROR "torch: not installed for ${Python3_EXECUTABLE}; run ./run setup, or set "
                      "Python3_EXECUTABLE to a Python that has torch ${ZEROMUON_OLDEST_TORCH} or newer")
endif()

# Read as text: importing torch takes seconds and may load a CUDA driver.
file(READ "${torch_dir}/version.py" torch_version_text)
string(REGEX MATCH "__version__ = '([0-9.]+)" _ "${torch_version_text}")
set(ZEROMUON_TORCH_VERSION "${CMAKE_MATCH_1}")
string(REGEX MATCH "\ncuda[^\n]*= '([0-9.]+)'" _ "${torch_version_text}")
set(ZEROMUON_TORCH_CUDA "${CMAKE_MATCH_1}")
if(ZEROMUON_TORCH_VERSION VERSION_LESS ZEROMUON_OLDEST_TORCH)
  message(FATAL_ERROR "torch: expected ${ZEROMUON_OLDEST_TORCH} or newer, found ${ZEROMUON_TORCH_VERSION} "
                      "in ${torch_dir}; install the versions of requirements.txt")
endif()
message(STATUS "torch ${ZEROMUON_TORCH_VERSION}, CUDA \"${ZEROMUON_TORCH_CUDA}\", in ${torch_dir}")

cmake_path(GET torch_dir PARENT_PATH site_packages)
set(ZEROMUON_TORCH_LIBRARY_DIRS "${torch_dir}/lib")
set(ZEROMUON_TORCH_RPATH "$ORIGIN/../torch/lib")
string(REGEX MATCH "^[0-9]+" ZEROMUON_TORCH_CUDA_MAJOR "${ZEROMUON_TORCH_CUDA}")
if(ZEROMUON_TORCH_CUDA_MAJOR)
  # libcudart, which a CUDA wheel's libtorch_cpu needs too, and libcublas: in nvidia/cu13 for CUDA 13, in
  # nvidia/cuda_runtime and nvidia/cublas for 12.
  foreach(library IN ITEMS cudart cublas)
    file(GLOB found "${site_packages}/nvidia/*/lib/lib${library}.so.${ZEROMUON_TORCH_CUDA_MAJOR}*")
    if(found)
      list(GET found 0 found)
      set(torch_${library} "${found}")
      cmake_path(GET found PARENT_PATH directory)
      cmake_path(RELATIVE_PATH directory BASE_DIRECTORY "${site_packages}" OUTPUT_VARIABLE relative)
      list(APPEND ZEROMUON_TORCH_LIBRARY_DIRS "${directory}")
      list(APPEND ZEROMUON_TORCH_RPATH "$ORIGIN/../${relative}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES ZEROMUON_TORCH_LIBRARY_DIRS)
  list(REMOVE_DUPLICATES ZEROMUON_TORCH_RPATH)
endif()

function(import_torch_library target file)
  add_library(torch_wheel::${target} SHARED IMPORTED GLOBAL)
  set_target_properties(torch_wheel::${target} PROPERTIES IMPORTED_LOCATION "${torch_dir}/lib/${file}")
  if(NOT EXISTS "${torch_dir}/lib/${file}")
    message(FATAL_ERROR "torch: ${torch_dir}/lib has no ${file}; reinstall torch")
  endif()
endfunction()

import_torch_library(c10 libc10.so)
import_torch_library(blas libtorch_cpu.so)
import_torch_library(libtorch_python libtorch_python.so)

add_library(torch_wheel::cpu INTERFACE IMPORTED GLOBAL)
target_include_directories(torch_wheel::cpu SYSTEM INTERFACE
  "${torch_dir}/include" "${torch_dir}/include/torch/csrc/api/include")
target_link_libraries(torch_wheel::cpu INTERFACE torch_wheel::blas torch_wheel::c10)

if(torch_cublas) # the one that libtorch_cuda has loaded
  add_library(torch_wheel::cublas SHARED IMPORTED GLOBAL)
  set_target_properties(torch_wheel::cublas PROPERTIES IMPORTED_LOCATION "${torch_cublas}")
endif()

if(EXISTS "${torch_dir}/lib/libtorch_cuda.so")
  # Registers CUDA with libtorch when it is loaded.
  add_library(torch_wheel::cuda INTERFACE IMPORTED GLOBAL)
  target_link_options(torch_wheel::cuda INTERFACE
    LINKER:--push-state,--no-as-needed "${torch_dir}/lib/libtorch_cuda.so" "${torch_dir}/lib/libc10_cuda.so"
    LINKER:--pop-state LINKER:--allow-shlib-undefined)
endif()

add_library(torch_wheel::python INTERFACE IMPORTED GLOBAL)
target_link_libraries(torch_wheel::python INTERFACE torch_wheel::libtorch_python torch_wheel::cpu)
