#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "csrc/cuda/elementwise.h"
#include "csrc/cuda/status.h"

namespace zeromuon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 8;         // elements that a thread takes
constexpr int kAccessBytes = 16;  // of one load or store, where addresses allow it

// The Flag of the bodies. They are host functions, too, but nothing runs them on the host here.
struct AlarmFlag {
  Alarm alarm;
  __host__ __device__ void raise() const {
#if defined(__CUDA_ARCH__)
    static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
    auto* const word = reinterpret_cast<unsigned long long*>(alarm.word);
    // Whatever runs of one kernel ring first, the least code stays.
    unsigned long long seen = atomicCAS(word, 0ull, alarm.code);
    while (seen > alarm.code) {
      const unsigned long long before = atomicCAS(word, seen, alarm.code);
      if (before == seen) break;
      seen = before;
    }
#endif
  }
};

enum class Access { kRead, kWrite, kReadWrite };

// An array of a kernel. aligned: where groups begin.
template <typename T, Access access>
struct Array {
  T* at;
  bool aligned = false;
};
template <typename T>
Array<T, Access::kRead> read(T* at) {
  return {at};
}
template <typename T>
Array<T, Access::kWrite> write(T* at) {
  return {at};
}
template <typename T>
Array<T, Access::kReadWrite> read_write(T* at) {
  return {at};
}

// A thread's group of an array, in registers.
template <typename T, Access access>
struct Group {
  Array<T, access> array;
  alignas(kAccessBytes) std::remove_const_t<T> values[kGroup];

  __device__ void load(int64_t begin) {
    if constexpr (access != Access::kWrite) copy(values, array.at + begin);
  }
  __device__ void store(int64_t begin) const {
    if constexpr (access != Access::kRead) copy(array.at + begin, values);
  }

 private:
  template <typename To, typename From>
  __device__ void copy(To* to, const From* from) const {
    constexpr int kAccesses = kGroup * static_cast<int>(sizeof(T)) / kAccessBytes;
    if (array.aligned) {
#pragma unroll
      for (int i = 0; i < kAccesses; ++i) {
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) to[i] = from[i];
    }
  }
};

// One that is not there.
template <Access access>
struct Group<ops::None, access> {
  Array<ops::None, access> array;
  ops::None* values = nullptr;
  __device__ void load(int64_t) {}
  __device__ void store(int64_t) const {}
};

template <typename Make, typename... Groups>
__device__ void work_on_group(int64_t begin, const Make& make, Groups... groups) {
  (groups.load(begin), ...);
  const auto body = make(groups.values...);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) body(i);
  (groups.store(begin), ...);
}

template <typename T, Access access>
__device__ Group<T, access> group_of(const Array<T, access>& array) {
  return {array};
}

// Where groups begin, and how many there are; what is before and behind them goes one by one.
struct Cut {
  int64_t head = 0, groups = 0, tail = 0;
};

template <typename Make, typename... Arrays>
__device__ void work_of_thread(const Cut& cut, int64_t thread, const Make& make, Arrays... arrays) {
  if (thread < cut.groups) {
    work_on_group(cut.head + kGroup * thread, make, group_of(arrays)...);
  }
  if (thread < cut.head + cut.tail) {
    make(arrays.at...)(thread < cut.head ? thread : kGroup * cut.groups + thread);
  }
}

// The runs of one kernel. offset: of arrays that a run does not place, the first one's.
struct RunTable {
  int64_t offsets[kRunsOfALaunch][3];
  Cut cuts[kRunsOfALaunch];
  uint64_t codes[kRunsOfALaunch];
  unsigned first_block[kRunsOfALaunch + 1];
  uint32_t aligned[kRunsOfALaunch];  // a bit for each array
  int count = 0;

  ZM_HOST_DEVICE int64_t offset(int run, size_t array) const {
    return offsets[run][array < 3 ? array : 0];
  }
};

template <typename T, Access access>
ZM_HOST_DEVICE Array<T, access> part_of(Array<T, access> array, const RunTable& table, int run,
                                        size_t index) {
  if constexpr (!std::is_same_v<T, ops::None>) {
    if (array.at != nullptr) array.at += table.offset(run, index);
  }
  array.aligned = (table.aligned[run] >> index & 1) != 0;
  return array;
}

template <typename Make, size_t... index, typename... Arrays>
__device__ void work_on_run(const RunTable& table, int run, const Make& make,
                            std::index_sequence<index...>, const Arrays&... arrays) {
  const int64_t thread =
      static_cast<int64_t>(blockIdx.x - table.first_block[run]) * kThreads + threadIdx.x;
  const uint64_t code = table.codes[run];
  work_of_thread(
      table.cuts[run], thread, [&](auto*... at) { return make(run, code, at...); },
      part_of(arrays, table, run, index)...);
}

// make(run, code, pointers...): the body of csrc/ops/elements.h on these arrays.
template <typename Make, typename... Arrays>
__global__ void for_each_group(const __grid_constant__ RunTable table,
                               const __grid_constant__ Make make, Arrays... arrays) {
  int run = 0;
  while (blockIdx.x >= table.first_block[run + 1]) ++run;
  work_on_run(table, run, make, std::index_sequence_for<Arrays...>{}, arrays...);
}

template <typename T>
int64_t bytes_if_aligned(const T* at, int64_t element) {
  if constexpr (std::is_same_v<T, ops::None>) return 0;
  const bool aligned = reinterpret_cast<uintptr_t>(at + element) % kAccessBytes == 0;
  return at != nullptr && aligned ? static_cast<int64_t>(sizeof(T)) : 0;
}

// The head that aligns most bytes.
template <typename... Arrays>
Cut cut_of(int64_t numel, const Arrays&... arrays) {
  int64_t best = 0, most = -1;
  for (int64_t head = 0; head < kGroup && head <= numel; ++head) {
    const int64_t aligned = (bytes_if_aligned(arrays.at, head) + ...);
    if (aligned > most) {
      most = aligned;
      best = head;
    }
  }
  const int64_t groups = (numel - best) / kGroup;
  return {best, groups, numel - best - groups * kGroup};
}

template <size_t... index, typename... Arrays>
void add_run(RunTable& table, const ops::Run& run, std::index_sequence<index...>,
             const Arrays&... arrays) {
  const int r = table.count++;
  for (int i = 0; i < 3; ++i) table.offsets[r][i] = run.at[i];
  table.codes[r] = run.code;
  table.aligned[r] = 0;
  table.cuts[r] = cut_of(run.length, part_of(arrays, table, r, index)...);
  const Cut& cut = table.cuts[r];
  ((table.aligned[r] |=
    bytes_if_aligned(part_of(arrays, table, r, index).at, cut.head) > 0 ? 1u << index : 0u),
   ...);
  const int64_t singles = cut.head + cut.tail;
  const int64_t threads = cut.groups > singles ? cut.groups : singles;
  table.first_block[r + 1] =
      table.first_block[r] + static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

// make_from(i): what makes the bodies of the runs from the i-th on.
template <typename MakeFrom, typename... Arrays>
void launch(StreamRef stream, const char* what, std::span<const ops::Run> runs,
            const MakeFrom& make_from, Arrays... arrays) {
  for (size_t begin = 0; begin < runs.size(); begin += kRunsOfALaunch) {
    RunTable table{};
    for (size_t i = begin; i < runs.size() && i < begin + kRunsOfALaunch; ++i) {
      add_run(table, runs[i], std::index_sequence_for<Arrays...>{}, arrays...);
    }
    const unsigned blocks = table.first_block[table.count];
    if (blocks == 0) continue;
    for_each_group<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(
        table, make_from(begin), arrays...);
    check(cudaGetLastError(), what);
  }
}

struct MakeMomentum {
  ops::MomentumElement element;
  uint64_t* word;
  template <typename... T>
  __device__ auto operator()(int, uint64_t code, T*... at) const {
    return ops::MomentumBody{element, at..., AlarmFlag{{word, code}}};
  }
};

// Of the runs of one kernel.
struct Elements {
  alignas(ops::ApplyElement) std::byte bytes[kRunsOfALaunch * sizeof(ops::ApplyElement)];

  Elements(std::span<const ops::ApplyElement> elements, size_t begin) {
    const size_t left = elements.size() - begin;
    std::memcpy(bytes, elements.data() + begin,
                sizeof(ops::ApplyElement) * (left < kRunsOfALaunch ? left : kRunsOfALaunch));
  }
  __device__ const ops::ApplyElement& of(int run) const {
    return reinterpret_cast<const ops::ApplyElement*>(bytes)[run];
  }
};

struct MakeApply {
  Elements elements;
  uint64_t* word;
  template <typename... T>
  __device__ auto operator()(int run, uint64_t code, T*... at) const {
    return ops::ApplyBody{elements.of(run), at..., AlarmFlag{{word, code}}};
  }
};

struct MakeAdamW {
  ops::AdamWElement element;
  uint64_t* word;
  template <typename... T>
  __device__ auto operator()(int, uint64_t code, T*... at) const {
    return ops::AdamWBody{element, at..., AlarmFlag{{word, code}}};
  }
};

struct MakeEncode {
  uint64_t* word;
  template <typename Out>
  __device__ auto operator()(int, uint64_t code, const float* values, Out* out) const {
    return ops::EncodeBody{values, out, AlarmFlag{{word, code}}};
  }
};

struct MakeDecode {
  template <typename In>
  __device__ auto operator()(int, uint64_t, const In* in, float* values) const {
    return ops::DecodeBody{in, values};
  }
};

ops::Run whole(int64_t numel, uint64_t code = 0) { return {{0, 0, 0}, numel, code}; }

}  // namespace

void update_momenta(StreamRef stream, const ops::MomentumElement& element,
                    const ops::MomentumArrays& arrays, std::span<const ops::Run> runs,
                    uint64_t* word) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](auto* gradient, auto* momentum, auto* wire) {
    launch(
        stream, "update_momentum", runs,
        [&](size_t) {
          return MakeMomentum{element, word};
        },
        read(gradient), read_write(momentum), write(wire));
  });
}

void apply_updates(StreamRef stream, std::span<const ops::ApplyElement> elements,
                   const ops::ApplyArrays& arrays, std::span<const ops::Run> runs, uint64_t* word) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](float* weight, auto* update, auto* low) {
    launch(
        stream, "apply_update", runs,
        [&](size_t begin) {
          return MakeApply{{elements, begin}, word};
        },
        read_write(weight), read(update), write(low));
  });
}

void encode_runs(StreamRef stream, const float* values, const ops::Typed& wire,
                 std::span<const ops::Run> runs, uint64_t* word) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* out) {
    launch(
        stream, "encode_wire", runs, [&](size_t) { return MakeEncode{word}; }, read(values),
        write(out));
  });
}

void decode_runs(StreamRef stream, const ops::ConstTyped& wire, float* values,
                 std::span<const ops::Run> runs) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* in) {
    launch(
        stream, "decode_wire", runs, [&](size_t) { return MakeDecode{}; }, read(in), write(values));
  });
}

void update_momentum(StreamRef stream, const ops::MomentumElement& element,
                     const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) {
  const ops::Run run = whole(numel, alarm.code);
  update_momenta(stream, element, arrays, {&run, 1}, alarm.word);
}

void apply_update(StreamRef stream, const ops::ApplyElement& element,
                  const ops::ApplyArrays& arrays, int64_t numel, Alarm alarm) {
  const ops::Run run = whole(numel, alarm.code);
  apply_updates(stream, {&element, 1}, arrays, {&run, 1}, alarm.word);
}

void adamw(StreamRef stream, const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
           int64_t numel, Alarm alarm) {
  ops::check(arrays);
  const ops::Run run = whole(numel, alarm.code);
  ops::with_types(arrays, 0, [&](float* weight, auto* gradient, auto* m, auto* v, auto* low) {
    launch(
        stream, "adamw", {&run, 1},
        [&](size_t) {
          return MakeAdamW{element, alarm.word};
        },
        read_write(weight), read(gradient), read_write(m), read_write(v), write(low));
  });
}

void encode_wire(StreamRef stream, const float* values, const ops::Typed& wire, int64_t numel,
                 Alarm alarm) {
  const ops::Run run = whole(numel, alarm.code);
  encode_runs(stream, values, wire, {&run, 1}, alarm.word);
}

void decode_wire(StreamRef stream, const ops::ConstTyped& wire, float* values, int64_t numel) {
  const ops::Run run = whole(numel);
  decode_runs(stream, wire, values, {&run, 1});
}

}  // namespace zeromuon::cuda
