// Runs one thread per rank and hands errors of any rank to the test.
#pragma once

#include <exception>
#include <string>
#include <thread>
#include <vector>

namespace zeromuon::testing {

// Returns what each rank threw: "" when it finished.
template <typename Body>
std::vector<std::string> on_ranks(int world_size, Body body) {
  std::vector<std::string> errors(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

}  // namespace zeromuon::testing
