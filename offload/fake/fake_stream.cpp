#include "offload/fake/fake_stream.h"

#include <utility>

namespace zeromuon::offload {
namespace {

thread_local FakeStream* current_stream = nullptr;

}  // namespace

class FakeStream::Place final : public Mark {
 public:
  bool reached() override {
    const std::lock_guard lock(mutex_);
    return report();
  }
  void wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reached_; });
    report();
  }
  void reach(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    error_ = std::move(error);
    changed_.notify_all();
  }

 private:
  bool report() const {  // holding mutex_
    if (error_) std::rethrow_exception(error_);
    return reached_;
  }

  std::mutex mutex_;  // all below
  std::condition_variable changed_;
  bool reached_ = false;
  std::exception_ptr error_;
};

FakeStream::FakeStream(std::function<void()> enter, std::function<void()> before)
    : enter_(std::move(enter)), before_(std::move(before)), thread_([this] { run(); }) {}

FakeStream::~FakeStream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void FakeStream::put(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back([this, work = std::move(work)] {
      if (error_) return;
      try {
        work();
      } catch (...) {
        error_ = std::current_exception();
      }
    });
  }
  changed_.notify_one();
}

std::shared_ptr<Mark> FakeStream::mark() {
  auto place = std::make_shared<Place>();
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back([this, place] { place->reach(error_); });
  }
  changed_.notify_one();
  return place;
}

void FakeStream::hold(std::shared_ptr<Mark> mark) {
  put([mark = std::move(mark)] { mark->wait(); });
}

FakeStream* FakeStream::current() { return current_stream; }

void FakeStream::make_current() { current_stream = this; }

void FakeStream::run() {
  enter_();
  while (true) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    before_();
    work();
  }
}

}  // namespace zeromuon::offload
