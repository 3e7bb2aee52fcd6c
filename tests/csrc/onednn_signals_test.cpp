// Signals that come while oneDNN multiplies: their handler runs on the thread's stack, never on
// the heap, where its frame would overwrite what others own.
#ifdef ZEROMUON_WITH_ONEDNN

#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <thread>
#include <tuple>
#include <vector>

#include "csrc/ops/newton_schulz/gemm.h"
#include "csrc/ops/newton_schulz/scratch.h"

namespace zeromuon::ops {
namespace {

constexpr int kSignal = SIGUSR1;
constexpr int kLeastSignals = 300, kLeastProducts = 30;

std::atomic<uintptr_t> stack_begin, stack_end;
std::atomic<int> handled, elsewhere;

void note_where(int) {
  const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  if (here < stack_begin || here >= stack_end) ++elsewhere;
  ++handled;
}

void take_bounds_of_this_stack() {
  pthread_attr_t attributes;
  void* begin = nullptr;
  size_t bytes = 0;
  ASSERT_EQ(pthread_getattr_np(pthread_self(), &attributes), 0);
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  stack_begin = reinterpret_cast<uintptr_t>(begin);
  stack_end = stack_begin + bytes;
}

// The test's handler, and the one from before at the end.
class Handler {
 public:
  Handler() {
    struct sigaction action = {};
    action.sa_handler = note_where;
    action.sa_flags = SA_RESTART;
    sigaction(kSignal, &action, &before_);
  }
  ~Handler() { sigaction(kSignal, &before_, nullptr); }

 private:
  struct sigaction before_ = {};
};

// Sends signals to the thread that makes it, one after another, for its life.
class Storm {
 public:
  Storm()
      : target_(pthread_self()), sender_([this] {
          while (!done_) {
            pthread_kill(target_, kSignal);
            std::this_thread::yield();
          }
        }) {}
  ~Storm() {
    done_ = true;
    sender_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  pthread_t target_;
  std::thread sender_;
};

// The side of the result, the inner side, transposed left factor, transposed right factor.
class OneDnnSignals : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, bool, bool>> {};

// With the strides of Newton-Schulz: oneDNN has other kernels for those that row_stride() avoids.
TEST_P(OneDnnSignals, HandlersRunOnTheStackOfTheThread) {
  const auto [side, k, a_transposed, b_transposed] = GetParam();
  const int64_t outer = row_stride(side), inner = row_stride(k);
  const std::vector<float> a(std::max(side, k) * std::max(outer, inner), 1.0f), b = a;
  std::vector<float> c(side * outer);
  const Gemm gemm{DType::kFloat32,
                  side,
                  side,
                  k,
                  a.data(),
                  a_transposed ? outer : inner,
                  a_transposed,
                  b.data(),
                  b_transposed ? inner : outer,
                  b_transposed,
                  c.data(),
                  outer};
  GemmBackends backends;
  const SingleThread alone;
  handled = elsewhere = 0;
  take_bounds_of_this_stack();
  const Handler handler;
  {
    const Storm storm;
    for (int done = 0; done < kLeastProducts || handled < kLeastSignals; ++done) {
      backends.run(ProductBackend::kOneDnn, gemm);
    }
  }
  EXPECT_EQ(elsewhere, 0) << "of " << handled << " handler calls";
  EXPECT_EQ(c[0], static_cast<float>(k));
}

INSTANTIATE_TEST_SUITE_P(Products, OneDnnSignals,
                         ::testing::Combine(::testing::Values(128, 256),
                                            ::testing::Values(512, 2048), ::testing::Bool(),
                                            ::testing::Bool()));

}  // namespace
}  // namespace zeromuon::ops

#endif
