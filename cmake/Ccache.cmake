# Compiles through ccache where it is installed, unless a launcher was chosen.
find_program(ZEROMUON_CCACHE ccache)
mark_as_advanced(ZEROMUON_CCACHE)
if(NOT ZEROMUON_CCACHE)
  return()
endif()
foreach(language IN ITEMS CXX CUDA)
  if(NOT CMAKE_${language}_COMPILER_LAUNCHER)
    # What it needs to know a precompiled header again.
    set(CMAKE_${language}_COMPILER_LAUNCHER
      "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${ZEROMUON_CCACHE}")
  endif()
endforeach()
