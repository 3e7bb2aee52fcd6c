# Headers that take longer to read than our sources, compiled once for all targets of a kind:
#   tests         GoogleTest, no libtorch
#   tensor_tests  GoogleTest, libtorch and Asio
#   bindings      what Python modules with tensors include
# A source still includes what it uses: the dev preset compiles without precompiled headers. Not for
# the libraries of the step: reading Asio and a tensor's header is 1 of 6 CPU seconds of a file
# there, and the precompiled header itself takes 10.

set(zeromuon_standard_headers
  <algorithm> <functional> <map> <memory> <optional> <span> <string> <thread> <unordered_map> <vector>)
set(zeromuon_asio_headers
  <boost/asio/awaitable.hpp> <boost/asio/co_spawn.hpp> <boost/asio/io_context.hpp>
  <boost/asio/steady_timer.hpp> <boost/asio/use_awaitable.hpp>)

set(zeromuon_headers_tests ${zeromuon_standard_headers} <gmock/gmock.h> <gtest/gtest.h>)
set(zeromuon_links_tests GTest::gmock)
set(zeromuon_headers_tensor_tests ${zeromuon_headers_tests} <ATen/core/Tensor.h> ${zeromuon_asio_headers})
set(zeromuon_links_tensor_tests GTest::gmock torch_wheel::cpu zeromuon_asio zeromuon_openmp)
set(zeromuon_headers_bindings
  ${zeromuon_standard_headers} <torch/csrc/utils/pybind.h> <torch/csrc/distributed/c10d/ProcessGroup.hpp>
  <pybind11/stl.h> ${zeromuon_asio_headers})
set(zeromuon_links_bindings torch_wheel::python Python3::Module zeromuon_asio zeromuon_openmp)

# Links `target` to the libraries of the kind, too: GCC takes a precompiled header only where all
# options are those that it was compiled with.
function(zeromuon_precompile target kind)
  target_link_libraries(${target} PRIVATE ${zeromuon_links_${kind}})
  if(CMAKE_DISABLE_PRECOMPILE_HEADERS)
    return()
  endif()
  set(owner zeromuon_headers_of_${kind})
  if(NOT TARGET ${owner})
    file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/cmake/${owner}.cpp" CONTENT "")
    add_library(${owner} OBJECT EXCLUDE_FROM_ALL "${PROJECT_BINARY_DIR}/cmake/${owner}.cpp")
    target_link_libraries(${owner} PRIVATE zeromuon_settings ${zeromuon_links_${kind}})
    target_precompile_headers(${owner} PRIVATE ${zeromuon_headers_${kind}})
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "EXECUTABLE")
      set_target_properties(${owner} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${owner} PRIVATE ${CMAKE_CXX_COMPILE_OPTIONS_PIE})
    endif()
  endif()
  target_precompile_headers(${target} REUSE_FROM ${owner})
  # What GCC 12 says of std::string's operator+ (see ZeromuonLibrary.cmake) has other names where the
  # string comes from a precompiled header.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Wno-stringop-overflow> $<$<COMPILE_LANGUAGE:CXX>:-Wno-stringop-overread>
      $<$<COMPILE_LANGUAGE:CXX>:-Wno-array-bounds>)
  endif()
endfunction()
