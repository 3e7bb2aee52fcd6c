# Note [One instruction set per file]: the archive ARCHIVE defines nothing global but the tables,
# and nothing that the linker may merge with another file's.
execute_process(COMMAND "${NM}" -C --defined-only --extern-only "${ARCHIVE}"
  OUTPUT_VARIABLE text RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${NM} cannot read ${ARCHIVE}")
endif()
string(REGEX MATCHALL "[^\n]+ [A-Za-z] [^\n]+" symbols "${text}")
if(NOT symbols)
  message(FATAL_ERROR "${ARCHIVE}: expected the tables of kernels, found no symbol")
endif()
foreach(symbol IN LISTS symbols)
  if(NOT symbol MATCHES " T zeromuon::ops::([a-z0-9_]+_kernels|avx2::tile_ops)\\(\\)$")
    message(FATAL_ERROR "${ARCHIVE}: expected only the tables of kernels, got ${symbol}")
  endif()
endforeach()
