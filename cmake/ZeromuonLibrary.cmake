# What all targets share.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_BUILD_RPATH "${ZEROMUON_TORCH_LIBRARY_DIRS}")

add_library(zeromuon_settings INTERFACE)
target_include_directories(zeromuon_settings INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(zeromuon_settings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>"
  "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${ZEROMUON_WERROR}>>:-Werror>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${ZEROMUON_WERROR}>>:--Werror=all-warnings>")
# GCC 12 warns about std::string's operator+ itself (GCC bug 105651, fixed in 13).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(zeromuon_settings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
# In a unity build every source is an included file, in which GCC warns of types of unnamed namespaces.
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(zeromuon_settings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)
endif()
if(ZEROMUON_SANITIZE)
  target_compile_options(zeromuon_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${ZEROMUON_SANITIZE}> $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  target_link_options(zeromuon_settings INTERFACE -fsanitize=${ZEROMUON_SANITIZE})
  if(ZEROMUON_SANITIZE MATCHES undefined)
    # The two take a third of the compile time; the address sanitizer stops at a null pointer, too.
    target_compile_options(zeromuon_settings INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=null> $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=vptr>)
  endif()
endif()

# Not OpenMP::OpenMP_CXX, which names the compiler's libgomp by its path: one libgomp serves the
# process, the one that libtorch loads.
add_library(zeromuon_openmp INTERFACE)
target_compile_options(zeromuon_openmp INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>)
target_link_options(zeromuon_openmp INTERFACE ${OpenMP_CXX_FLAGS})

# The static library zeromuon_<name> from the sources that follow.
function(zeromuon_library name)
  add_library(zeromuon_${name} STATIC ${ARGN})
  target_link_libraries(zeromuon_${name} PUBLIC zeromuon_settings)
endfunction()

# Results must have the same bits whatever the compiler could fuse.
set(ZEROMUON_EXACT_ARITHMETIC "$<$<NOT:$<CONFIG:Debug>>:-O3>" -ffp-contract=off)
