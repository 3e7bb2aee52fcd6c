// Short ways to put work on a lane and to look at what it threw.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "offload/lane.h"

namespace zeromuon::testing {

inline offload::Task task(const char* stage, std::function<void()> body,
                          offload::Urgency urgency = offload::Urgency::kUrgent, int bucket = -1) {
  return {stage, bucket, urgency, {}, std::move(body)};
}

// Waits for it.
inline offload::Outcome run_on(offload::Lane& lane, offload::Task work) {
  const auto outcome = std::make_shared<std::promise<offload::Outcome>>();
  std::future<offload::Outcome> future = outcome->get_future();
  lane.submit(std::move(work),
              [outcome](offload::Outcome got) { outcome->set_value(std::move(got)); });
  return future.get();
}

// "": none.
inline std::string message_of(const std::exception_ptr& error) {
  if (!error) return "";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& thrown) {
    return thrown.what();
  }
}

// What body() throws; "": nothing.
template <typename Body>
std::string error_of(Body body) {
  try {
    body();
  } catch (const std::exception& thrown) {
    return thrown.what();
  }
  return "";
}

}  // namespace zeromuon::testing
