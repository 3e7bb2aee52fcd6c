// Where work of a step waits its turn.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace zeromuon::offload {

// What a task takes of the machine. Virtual lanes turn it into time; the others ignore it.
struct Cost {
  int64_t dram_bytes = 0;    // read and written in host memory
  int64_t link_bytes = 0;    // copied between host and device
  int64_t wire_bytes = 0;    // sent to other processes or got from them, whichever is more
  int64_t device_bytes = 0;  // read and written in the memory of the compute device
  double flops = 0;          // of matrix products
  int64_t launches = 0;      // of kernels, by which a short task may take longer than its work
};

// Urgent work goes first; filler takes a lane only while nothing urgent waits for it.
enum class Urgency : uint8_t { kUrgent, kFiller };

// A place in the order of what a lane queued on its device.
// Thread: any, at the same time.
class Mark {
 public:
  virtual ~Mark() = default;
  // Whether all before it is done. Raises what went wrong there.
  virtual bool reached() = 0;
  // Blocks until it is. Raises what went wrong before it.
  virtual void wait() = 0;
};

struct Task {
  const char* stage;  // static string
  int bucket = -1;    // of the step; -1: none
  Urgency urgency = Urgency::kUrgent;
  Cost cost = {};
  std::function<void()> body = {};  // calls Device operations; may throw
  int64_t number = 0;               // chosen by who submits it
  // What its operations come after, of a lane of the same backend; null: nothing that is not done.
  std::shared_ptr<Mark> after = {};
  // A lane with a stream of its own need not wait for it: the outcome then has the mark where the
  // effects are there, and end_ns is when the body returned.
  bool hands_over = false;
};

struct Outcome {
  std::exception_ptr error;          // what the body threw
  int64_t begin_ns = 0, end_ns = 0;  // of the lane's clock
  std::shared_ptr<Mark> mark = {};   // null: the effects are there
};

// An executor with an order: runs one task at a time, of equal urgency in the order of submit().
// Thread: submit(), running() and state() from any thread. `done` is called once, on any thread,
// when the effects of the task are there or have a mark; it must not block. The destructor waits
// for what was submitted.
class Lane {
 public:
  using Done = std::function<void(Outcome)>;

  virtual ~Lane() = default;
  virtual void submit(Task task, Done done) = 0;
  // The number of the task that runs, if one does.
  virtual std::optional<int64_t> running() const = 0;
  // For people, one line: what runs and since when, and how much waits.
  virtual std::string state() const = 0;
};

enum class LaneKind : uint8_t { kCpu, kToDevice, kCompute, kToHost, kCollective };
constexpr int kLaneKinds = 5;

// What tables, traces and errors call it. Their order is that of a picture from top to bottom.
constexpr const char* name_of(LaneKind kind) {
  constexpr const char* kNames[kLaneKinds] = {"cpu", "to_device", "compute", "to_host",
                                              "collective"};
  return kNames[static_cast<int>(kind)];
}

// The lanes that a step uses; one lane may serve several kinds.
class Lanes {
 public:
  // Each kind exactly once in all calls.
  void add(std::unique_ptr<Lane> lane, std::initializer_list<LaneKind> kinds);
  Lane& operator[](LaneKind kind) const { return *by_kind_[static_cast<int>(kind)]; }
  // Of every lane, a line each.
  std::string states() const;

 private:
  std::array<Lane*, kLaneKinds> by_kind_{};
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace zeromuon::offload
