# Compiles through ccache where it is installed, unless a launcher was chosen.
find_program(ZEROMUON_CCACHE ccache)
mark_as_advanced(ZEROMUON_CCACHE)
foreach(language IN ITEMS CXX CUDA)
  if(ZEROMUON_CCACHE AND NOT CMAKE_${language}_COMPILER_LAUNCHER)
    set(CMAKE_${language}_COMPILER_LAUNCHER "${ZEROMUON_CCACHE}")
  endif()
endforeach()
