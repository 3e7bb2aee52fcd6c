# oneDNN of the system, API 2 or 3, as the target onednn::cpu; sets ZEROMUON_WITH_ONEDNN.
#
# Its own CMake package is not used: Debian's asks for OpenCL's development files, which nothing here
# includes. Sources that include dnnl.hpp must not see torch's headers, which carry another
# version of it.

set(ZEROMUON_WITH_ONEDNN OFF)
if(ZEROMUON_ONEDNN STREQUAL "OFF")
  message(STATUS "oneDNN: off, because ZEROMUON_ONEDNN is OFF; products go to libtorch's BLAS")
  return()
endif()

find_path(ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp)
find_library(ONEDNN_LIBRARY dnnl)
mark_as_advanced(ONEDNN_INCLUDE_DIR ONEDNN_LIBRARY)
if(NOT ONEDNN_INCLUDE_DIR OR NOT ONEDNN_LIBRARY)
  if(ZEROMUON_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "oneDNN: ZEROMUON_ONEDNN is ON, but oneapi/dnnl/dnnl.hpp or libdnnl was not found; install "
                        "libdnnl-dev, or set ONEDNN_INCLUDE_DIR and ONEDNN_LIBRARY")
  endif()
  message(STATUS "oneDNN: off, none was found (libdnnl-dev); products go to libtorch's BLAS")
  return()
endif()

file(READ "${ONEDNN_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h" onednn_version_text)
string(REGEX MATCH "DNNL_VERSION_MAJOR ([0-9]+)" _ "${onednn_version_text}")
set(onednn_version "${CMAKE_MATCH_1}")
string(REGEX MATCH "DNNL_VERSION_MINOR ([0-9]+)" _ "${onednn_version_text}")
string(APPEND onednn_version ".${CMAKE_MATCH_1}")
if(onednn_version VERSION_LESS 2.6 OR onednn_version VERSION_GREATER_EQUAL 4)
  message(FATAL_ERROR "oneDNN: expected 2.6 to 3.x, found ${onednn_version} in ${ONEDNN_INCLUDE_DIR}; set "
                      "ONEDNN_INCLUDE_DIR and ONEDNN_LIBRARY to another, or ZEROMUON_ONEDNN=OFF")
endif()

add_library(onednn::cpu SHARED IMPORTED GLOBAL)
set_target_properties(onednn::cpu PROPERTIES IMPORTED_LOCATION "${ONEDNN_LIBRARY}")
target_include_directories(onednn::cpu SYSTEM INTERFACE "${ONEDNN_INCLUDE_DIR}")
# Debian's library needs OpenCL's, which is there at run time but not for the linker.
target_link_options(onednn::cpu INTERFACE LINKER:--allow-shlib-undefined)
set(ZEROMUON_WITH_ONEDNN ON)
message(STATUS "oneDNN: ${onednn_version}, ${ONEDNN_LIBRARY}")
