// An OpenMP loop whose body may throw.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace zeromuon {

// Calls body(i, thread) for every i below `count`, first come first served, in a team of at most
// `threads`; thread is below that. Inside another team, or for a single i, it runs on the calling
// thread. The first exception is thrown again at the end.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  std::exception_ptr first;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (count > 1 && !omp_in_parallel())
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i, omp_get_thread_num());
    } catch (...) {
#pragma omp critical(zeromuon_parallel_for)
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace zeromuon
