# Boost.Asio, headers only.
find_package(Boost 1.81 REQUIRED)
add_library(zeromuon_asio INTERFACE)
target_link_libraries(zeromuon_asio INTERFACE Boost::headers Threads::Threads)
target_compile_definitions(zeromuon_asio INTERFACE BOOST_ASIO_DISABLE_CONCEPTS)
if(ZEROMUON_SANITIZE STREQUAL "thread")
  # Asio counts references with fences, which the sanitizer does not see, and GCC warns of it.
  # 1000 seeds of the pipeline brought no false report.
  target_compile_options(zeromuon_asio INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
endif()
