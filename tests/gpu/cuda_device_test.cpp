// Every operation of the GPU's Device against the same on the host, bit for bit: all element types,
// sizes, misaligned beginnings and special values; the pinning of host memory; waits.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <chrono>
#include <cstring>
#include <random>

#include "csrc/ops/elementwise.h"
#include "offload/backend.h"
#include "offload/host_device.h"
#include "tests/gpu/gpu.h"
#include "tests/offload/lane_tasks.h"

namespace zeromuon::offload {
namespace {

class DeviceOperations : public ::testing::Test {};
using PinnedMemory = testing::OnlyOnGpu;
using Order = testing::OnlyOnGpu;
using ops::Typed;

const std::vector<int64_t> kSizes = testing::has_gpu()
                                        ? std::vector<int64_t>{1, 7, 255, 256, 4099, (1 << 20) + 3}
                                        : std::vector<int64_t>{1, 7, 4099};
constexpr int64_t kOffsets[] = {0, 1, 3};  // elements behind an aligned address
constexpr DType kWide[] = {DType::kFloat32, DType::kBFloat16};
constexpr DType kAll[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Normally distributed, with zeros, denormals, infinities and NaNs among them where they are
// wanted.
std::vector<float> values(int64_t numel, unsigned seed, bool special) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  constexpr uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x00000001, 0x007fffff, 0x7f7fffff,
                                   0x7f7f8000, 0x477fefff, 0x477ff000, 0x33000001, 0x38800000,
                                   0x7f800000, 0xff800000, 0x7fc00000};
  std::vector<float> out(numel);
  for (int64_t i = 0; i < numel; ++i) {
    out[i] = normal(generator);
    if (special && i % 11 == seed % 11) out[i] = float_of(kSpecial[(i / 11 + seed) % 13]);
  }
  return out;
}

// The same array in host memory and on the GPU, at an offset from an aligned address.
class Twin {
 public:
  Twin(Device& device, const std::vector<float>& from, DType dtype, int64_t offset)
      : device_(device),
        dtype_(dtype),
        bytes_(static_cast<int64_t>(from.size()) * size_of(dtype)),
        begin_(offset * size_of(dtype)),
        host_(host_device_.allocate(begin_ + bytes_)),
        there_(device.allocate(begin_ + bytes_)) {
    ops::encode_values(from.data(), host(), static_cast<int64_t>(from.size()),
                       ops::CpuKernels::kReference);
    device_.copy_to_device(there_.get() + begin_, host_.get() + begin_, bytes_);
    device_.wait_for_caller();
  }
  Typed host() const { return {host_.get() + begin_, dtype_}; }
  Typed there() const { return {there_.get() + begin_, dtype_}; }
  float* host_floats() const { return static_cast<float*>(host().data); }
  float* there_floats() const { return static_cast<float*>(there().data); }

  // How many elements differ; two NaNs are the same.
  int64_t differences() const {
    const int64_t numel = bytes_ / size_of(dtype_);
    std::vector<std::byte> got(static_cast<size_t>(bytes_));
    device_.copy_to_host(got.data(), there_.get() + begin_, bytes_);
    device_.wait_for_caller();
    std::vector<float> a(numel), b(numel);
    ops::decode_values(host(), a.data(), numel, ops::CpuKernels::kReference);
    ops::decode_values(Typed(got.data(), dtype_), b.data(), numel, ops::CpuKernels::kReference);
    int64_t count = 0;
    for (int64_t i = 0; i < numel; ++i) {
      const bool nans = a[i] != a[i] && b[i] != b[i];
      count += nans || bits_of(a[i]) == bits_of(b[i]) ? 0 : 1;
    }
    return count;
  }

 private:
  HostDevice host_device_;
  Device& device_;
  DType dtype_;
  int64_t bytes_, begin_;
  Memory host_, there_;
};

// An alarm word on both sides.
class Alarms {
 public:
  explicit Alarms(Device& device) : device_(device), there_(device.allocate(8)) {
    device_.set_word(word(), 0);
  }
  Alarm host(uint64_t code) { return {&host_, code}; }
  Alarm there(uint64_t code) { return {word(), code}; }
  void expect_equal() {
    uint64_t got = 7;
    device_.read_word(&got, word());
    device_.wait_for_caller();
    EXPECT_EQ(got, host_);
  }

 private:
  uint64_t* word() { return reinterpret_cast<uint64_t*>(there_.get()); }
  Device& device_;
  Memory there_;
  uint64_t host_ = 0;
};

template <typename Body>
void for_sizes(Body body) {
  for (const int64_t numel : kSizes) {
    for (const int64_t offset : kOffsets) {
      for (const bool special : {false, true}) body(numel, offset, special);
    }
  }
}

// More than one kernel is told of, and more than the room for one copy.
TEST_F(DeviceOperations, SpreadsAWordAndReadsAll) {
  const auto device = testing::make_device();
  for (const int count : {1, 2, 8, 15, 16, 70, 200}) {
    const Memory memory = device->allocate(count * kBlockAlignment);
    std::vector<int64_t> offsets;
    for (int i = 0; i < count; ++i) offsets.push_back(i * kBlockAlignment);
    device->set_word(reinterpret_cast<uint64_t*>(memory.get()), 77);
    device->spread_word({memory.get(), offsets});
    const int last = count - 1;
    device->set_word(reinterpret_cast<uint64_t*>(memory.get() + offsets[last]), 5);
    std::vector<uint64_t> got(count), expected(count, 77);
    expected[last] = 5;
    device->read_words(got.data(), {memory.get(), offsets});
    device->wait_for_caller();
    EXPECT_EQ(got, expected);
  }
}

// Runs of every length and alignment, with gaps between them in one array and not in another; more
// than one kernel takes.
std::vector<ops::Run> runs_of(int count) {
  std::vector<ops::Run> runs;
  ops::Run next{{3, 0, 1}, 0, 100};
  for (int i = 0; i < count; ++i) {
    next.length = i % 7 == 3 ? 0 : (i * 37) % 301 + (i % 5 == 0 ? 5000 : 0);
    runs.push_back(next);
    next.at[0] += next.length + i % 3;
    next.at[1] += next.length;
    next.at[2] += next.length + 16;
    ++next.code;
  }
  return runs;
}

int64_t end_of(const std::vector<ops::Run>& runs) {
  return runs.back().at[2] + runs.back().length + 1000;
}

TEST_F(DeviceOperations, TakesManyRunsWithTheBitsOfTheHost) {
  const auto device = testing::make_device();
  Device& gpu = *device;
  HostDevice host;
  for (const int count : {1, 31, 32, 33, 100}) {
    const std::vector<ops::Run> runs = runs_of(count);
    const int64_t numel = end_of(runs);
    std::vector<ops::ApplyElement> elements;
    for (int i = 0; i < count; ++i) elements.emplace_back(1e-2, 0.01 * i, 0.7 + i);
    for (const DType wire : kWide) {
      const Twin a(gpu, values(numel, 1, false), DType::kFloat32, 0);
      const Twin b(gpu, values(numel, 2, false), DType::kFloat32, 0);
      const Twin c(gpu, values(numel, 3, false), wire, 0);
      const Twin low(gpu, values(numel, 4, false), DType::kBFloat16, 0);
      Alarms alarms(gpu);
      const ops::MomentumElement element(ops::MomentumKind::kEma, 0.95, true, 0.37f);
      const auto work = [&](Device& d, auto&& pick, uint64_t* word) {
        d.update_momenta(element, {pick(a), pick(b), pick(c)}, runs, word);
        d.apply_updates(elements, {static_cast<float*>(pick(a).data), pick(c), pick(low)}, runs,
                        word);
        d.encode_runs(static_cast<float*>(pick(b).data), pick(c), runs, word);
        d.decode_runs(pick(c), static_cast<float*>(pick(a).data), runs);
      };
      work(
          host, [](const Twin& t) { return t.host(); }, alarms.host(0).word);
      work(
          gpu, [](const Twin& t) { return t.there(); }, alarms.there(0).word);
      EXPECT_EQ(a.differences() + b.differences() + c.differences() + low.differences(), 0)
          << count << " " << name_of(wire);
      alarms.expect_equal();
    }
  }
}

TEST_F(DeviceOperations, TellsTheLeastCodeOfManyRunsThatRing) {
  const auto device = testing::make_device();
  const std::vector<ops::Run> runs = runs_of(30);
  const Twin a(*device, std::vector<float>(end_of(runs), INFINITY), DType::kFloat32, 0);
  const Twin b(*device, values(end_of(runs), 1, false), DType::kFloat32, 0);
  Alarms alarms(*device);
  HostDevice().encode_runs(a.host_floats(), b.host(), runs, alarms.host(0).word);
  device->encode_runs(a.there_floats(), b.there(), runs, alarms.there(0).word);
  alarms.expect_equal();
}

TEST_F(DeviceOperations, UpdatesTheMomentumWithTheBitsOfTheHost) {
  const auto device = testing::make_device();
  Device& gpu = *device;
  HostDevice host;
  for (const DType g : kWide) {
    for (const DType m : kWide) {
      for (const DType w : kWide) {
        for_sizes([&](int64_t numel, int64_t offset, bool special) {
          const Twin gradient(gpu, values(numel, 1, special), g, offset);
          const Twin momentum(gpu, values(numel, 2, special), m, offset);
          const Twin wire(gpu, values(numel, 3, false), w, offset);
          const ops::MomentumElement element(ops::MomentumKind::kEma, 0.95, true, 0.37f);
          Alarms alarms(gpu);
          host.update_momentum(element, {gradient.host(), momentum.host(), wire.host()}, numel,
                               alarms.host(5));
          gpu.update_momentum(element, {gradient.there(), momentum.there(), wire.there()}, numel,
                              alarms.there(5));
          EXPECT_EQ(momentum.differences() + wire.differences(), 0)
              << name_of(g) << " " << name_of(m) << " " << name_of(w) << " " << numel << " "
              << offset;
          alarms.expect_equal();
        });
      }
    }
  }
}

TEST_F(DeviceOperations, AppliesAnUpdateWithTheBitsOfTheHost) {
  const auto device = testing::make_device();
  Device& gpu = *device;
  HostDevice host;
  for (const DType u : kWide) {
    for (const DType low : kAll) {
      for (const auto decay : {ops::Decay::kDecoupled, ops::Decay::kCautious}) {
        for_sizes([&](int64_t numel, int64_t offset, bool special) {
          const Twin weight(gpu, values(numel, 1, special), DType::kFloat32, offset);
          const Twin update(gpu, values(numel, 2, special), u, offset);
          const Twin cast(gpu, values(numel, 3, false), low, offset);
          const bool casts = low != DType::kFloat32;
          const ops::ApplyElement element(1e-2, 0.1, 0.7, decay);
          Alarms alarms(gpu);
          host.apply_update(element,
                            {weight.host_floats(), update.host(), casts ? cast.host() : Typed()},
                            numel, alarms.host(6));
          gpu.apply_update(element,
                           {weight.there_floats(), update.there(), casts ? cast.there() : Typed()},
                           numel, alarms.there(6));
          EXPECT_EQ(weight.differences() + cast.differences(), 0)
              << name_of(u) << " " << name_of(low) << " " << numel << " " << offset;
          alarms.expect_equal();
        });
      }
    }
  }
}

TEST_F(DeviceOperations, TakesAdamWStepsWithTheBitsOfTheHost) {
  const auto device = testing::make_device();
  Device& gpu = *device;
  HostDevice host;
  for (const DType g : kWide) {
    for (const DType s : kWide) {
      for (const DType low : kAll) {
        for_sizes([&](int64_t numel, int64_t offset, bool special) {
          const Twin weight(gpu, values(numel, 1, special), DType::kFloat32, offset);
          const Twin gradient(gpu, values(numel, 2, special), g, offset);
          const Twin m(gpu, values(numel, 3, special), s, offset);
          const Twin v(gpu, values(numel, 4, special), s, offset);
          const Twin cast(gpu, values(numel, 5, false), low, offset);
          const bool casts = low != DType::kFloat32;
          const ops::AdamWElement element(1e-2, 0.9, 0.95, 1e-8, 0.1, 3, ops::Decay::kDecoupled,
                                          0.37f);
          Alarms alarms(gpu);
          host.adamw(element,
                     {weight.host_floats(), gradient.host(), m.host(), v.host(),
                      casts ? cast.host() : Typed()},
                     numel, alarms.host(1));
          gpu.adamw(element,
                    {weight.there_floats(), gradient.there(), m.there(), v.there(),
                     casts ? cast.there() : Typed()},
                    numel, alarms.there(1));
          EXPECT_EQ(weight.differences() + m.differences() + v.differences() + cast.differences(),
                    0)
              << name_of(g) << " " << name_of(s) << " " << name_of(low) << " " << numel << " "
              << offset;
          alarms.expect_equal();
        });
      }
    }
  }
}

TEST_F(DeviceOperations, EncodesAndDecodesTheWireWithTheBitsOfTheHost) {
  const auto device = testing::make_device();
  Device& gpu = *device;
  HostDevice host;
  for (const DType wire_type : kWide) {
    for_sizes([&](int64_t numel, int64_t offset, bool special) {
      const Twin plain(gpu, values(numel, 1, special), DType::kFloat32, offset);
      const Twin wire(gpu, values(numel, 2, false), wire_type, offset);
      const Twin back(gpu, values(numel, 3, false), DType::kFloat32, offset);
      Alarms alarms(gpu);
      host.encode_wire(plain.host_floats(), wire.host(), numel, alarms.host(3));
      gpu.encode_wire(plain.there_floats(), wire.there(), numel, alarms.there(3));
      host.decode_wire(wire.host(), back.host_floats(), numel);
      gpu.decode_wire(wire.there(), back.there_floats(), numel);
      EXPECT_EQ(wire.differences() + back.differences(), 0) << numel << " " << offset;
      alarms.expect_equal();
    });
  }
}

// ---- pinned memory

TEST_F(PinnedMemory, IsRegisteredAndCopiedAtTheRateOfTorchsOwnPinnedMemory) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  CudaDevice gpu(testing::kGpu);
  PinnedArena arena(kBytes, std::make_shared<CudaRegistrar>(testing::kGpu));
  ASSERT_EQ(arena.registered_bytes(), arena.bytes()) << arena.warning();
  std::byte* const ours = arena.take(kBytes).data;
  const at::Tensor theirs =
      at::empty({kBytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  const Memory there = gpu.allocate(kBytes);
  const auto seconds = [&](bool up, void* host) {
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      up ? gpu.copy_to_device(there.get(), host, kBytes)
         : gpu.copy_to_host(host, there.get(), kBytes);
      gpu.wait_for_caller();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      best = std::min(best, taken.count());
    }
    return best;
  };
  for (const bool up : {true, false}) {
    const double own = seconds(up, ours), reference = seconds(up, theirs.data_ptr());
    std::printf("%s: %.1f GB/s, torch's pinned memory %.1f GB/s\n", up ? "to the GPU" : "to host",
                1e-9 * kBytes / own, 1e-9 * kBytes / reference);
  }
}

// ---- order

// Work that is queued on a lane is done when the task is: what the next lane reads is there.
TEST_F(Order, ATaskEndsWhenItsEffectsAreThere) {
  Backend backend = make_backend({at::kCPU, testing::kGpu}, ops::CpuKernels::kAuto);
  constexpr int64_t kNumel = 1 << 24;
  const Memory there = backend.compute->allocate(4 * kNumel);
  PinnedArena arena(8 * kNumel, backend.registrar);
  auto* const up = reinterpret_cast<float*>(arena.take(4 * kNumel).data);
  auto* const down = reinterpret_cast<float*>(arena.take(4 * kNumel).data);
  for (int round = 0; round < 20; ++round) {
    std::fill(up, up + kNumel, static_cast<float>(round));
    const auto on = [&](LaneKind lane, std::function<void()> body) {
      const Outcome outcome = testing::run_on(backend.lanes[lane], testing::task("t", body));
      ASSERT_EQ(testing::message_of(outcome.error), "");
    };
    on(LaneKind::kToDevice, [&] { backend.compute->copy_to_device(there.get(), up, 4 * kNumel); });
    std::fill(up, up + kNumel, -1.0f);
    on(LaneKind::kToHost, [&] { backend.compute->copy_to_host(down, there.get(), 4 * kNumel); });
    EXPECT_EQ(std::count(down, down + kNumel, static_cast<float>(round)), kNumel);
  }
}

}  // namespace
}  // namespace zeromuon::offload
