#include <type_traits>

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
    atomicCAS(reinterpret_cast<unsigned long long*>(alarm.word), 0ull, alarm.code);
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

// Where groups begin, and how many there are; what is before and behind them goes one by one.
struct Cut {
  int64_t head = 0, groups = 0, tail = 0;
};

template <typename T, Access access>
__device__ Group<T, access> group_of(const Array<T, access>& array) {
  return {array};
}

// make(pointers...): the body of csrc/ops/elements.h on these arrays.
template <typename Make, typename... Arrays>
__global__ void for_each_group(Cut cut, Make make, Arrays... arrays) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread < cut.groups) {
    work_on_group(cut.head + kGroup * thread, make, group_of(arrays)...);
  }
  if (thread < cut.head + cut.tail) {
    make(arrays.at...)(thread < cut.head ? thread : kGroup * cut.groups + thread);
  }
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

template <typename Make, typename... Arrays>
void launch(StreamRef stream, const char* what, int64_t numel, Make make, Arrays... arrays) {
  if (numel == 0) return;
  const Cut cut = cut_of(numel, arrays...);
  ((arrays.aligned = bytes_if_aligned(arrays.at, cut.head) > 0), ...);
  const int64_t singles = cut.head + cut.tail;
  const int64_t threads = cut.groups > singles ? cut.groups : singles;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  for_each_group<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(cut, make,
                                                                                    arrays...);
  check(cudaGetLastError(), what);
}

struct MakeMomentum {
  ops::MomentumElement element;
  AlarmFlag flag;
  template <typename... T>
  __device__ auto operator()(T*... at) const {
    return ops::MomentumBody{element, at..., flag};
  }
};

struct MakeApply {
  ops::ApplyElement element;
  AlarmFlag flag;
  template <typename... T>
  __device__ auto operator()(T*... at) const {
    return ops::ApplyBody{element, at..., flag};
  }
};

struct MakeAdamW {
  ops::AdamWElement element;
  AlarmFlag flag;
  template <typename... T>
  __device__ auto operator()(T*... at) const {
    return ops::AdamWBody{element, at..., flag};
  }
};

struct MakeEncode {
  AlarmFlag flag;
  template <typename Out>
  __device__ auto operator()(const float* values, Out* out) const {
    return ops::EncodeBody{values, out, flag};
  }
};

struct MakeDecode {
  template <typename In>
  __device__ auto operator()(const In* in, float* values) const {
    return ops::DecodeBody{in, values};
  }
};

}  // namespace

void update_momentum(StreamRef stream, const ops::MomentumElement& element,
                     const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](auto* gradient, auto* momentum, auto* wire) {
    launch(stream, "update_momentum", numel, MakeMomentum{element, AlarmFlag{alarm}},
           read(gradient), read_write(momentum), write(wire));
  });
}

void apply_update(StreamRef stream, const ops::ApplyElement& element,
                  const ops::ApplyArrays& arrays, int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](float* weight, auto* update, auto* low) {
    launch(stream, "apply_update", numel, MakeApply{element, AlarmFlag{alarm}}, read_write(weight),
           read(update), write(low));
  });
}

void adamw(StreamRef stream, const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
           int64_t numel, Alarm alarm) {
  ops::check(arrays);
  ops::with_types(arrays, 0, [&](float* weight, auto* gradient, auto* m, auto* v, auto* low) {
    launch(stream, "adamw", numel, MakeAdamW{element, AlarmFlag{alarm}}, read_write(weight),
           read(gradient), read_write(m), read_write(v), write(low));
  });
}

void encode_wire(StreamRef stream, const float* values, const ops::Typed& wire, int64_t numel,
                 Alarm alarm) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* out) {
    launch(stream, "encode_wire", numel, MakeEncode{AlarmFlag{alarm}}, read(values), write(out));
  });
}

void decode_wire(StreamRef stream, const ops::ConstTyped& wire, float* values, int64_t numel) {
  ops::check_wire(wire);
  ops::with_type(wire, 0, [&](auto* in) {
    launch(stream, "decode_wire", numel, MakeDecode{}, read(in), write(values));
  });
}

}  // namespace zeromuon::cuda
