// What a stream of a GPU is to its host: a queue whose work is done some time later.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "offload/lane.h"

namespace zeromuon::offload {

// Does what it is given in that order, in a thread of its own. What a piece of work throws stops
// all later work, and every mark behind it raises it, as an error of CUDA does.
// Thread: put(), mark() and hold() from one; make_current() for the calling one.
class FakeStream {
 public:
  // enter: once, in its thread. before: before each piece of work, which it may delay.
  FakeStream(std::function<void()> enter, std::function<void()> before);
  // Does what waits.
  ~FakeStream();

  void put(std::function<void()> work);
  std::shared_ptr<Mark> mark();
  // What is put from here on comes after the mark, which another stream made.
  void hold(std::shared_ptr<Mark> mark);

  // Where the operations of the calling thread go; null: nowhere, they are done at once.
  static FakeStream* current();
  void make_current();

 private:
  class Place;

  void run();

  const std::function<void()> enter_, before_;
  std::exception_ptr error_;  // its own thread only
  std::mutex mutex_;          // all below but thread_
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool stopping_ = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace zeromuon::offload
