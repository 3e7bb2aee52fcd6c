// The fused kernels over vectors of floats, written once; included into each file of this folder
// after it has defined in its own anonymous namespace (see Note [One instruction set per file]):
//
//   F, kLanes           a vector of kLanes floats
//   splat, add, sub, mul, div, root
//   where_at_least_zero(x, a, b)   per lane a where x >= 0, else (a NaN too) b
//   load(const T*) -> F, store(T*, F) for T in float, BFloat16, Float16: any address
//   stream(float*, F)   past the caches; address a multiple of kLanes * sizeof(float)
//   fence()             orders the streamed stores before what follows
//   Bad, no_bad(), or_bad(Bad, F, first_non_finite) -> Bad, any(Bad) -> uint32_t
//   or_non_finite(Bad, F) -> Bad: or_bad for float32, in fewer instructions
//
// A kernel is a step over one vector. What is left of a range goes through the same step in
// padded buffers, so that an element's bits depend on nothing around it.

inline void store(None*, F) {}

// Of the new weight, and of its cast where there is one.
template <typename Low>
inline Bad or_bad_weight(Bad bad, F weight, Low*) {
  return or_bad(bad, weight, Range<Low>::kFirstNonFinite);
}
inline Bad or_bad_weight(Bad bad, F weight, None*) { return or_non_finite(bad, weight); }

// Of AdamW's states, beside the weight. In float32 the first moment needs no look: where it is not
// finite, neither is the weight, whatever the second is.
template <typename State>
inline Bad or_bad_states(Bad bad, F m, F v, State*) {
  bad = or_bad(bad, m, Range<State>::kFirstNonFinite);
  return or_bad(bad, v, Range<State>::kFirstNonFinite);
}
inline Bad or_bad_states(Bad bad, F, F v, float*) { return or_non_finite(bad, v); }

inline bool is_aligned(const float* at) {
  return reinterpret_cast<uintptr_t>(at) % (kLanes * sizeof(float)) == 0;
}

// The last `count` elements of an array, less than kLanes.
template <typename T>
struct Tail {
  alignas(64) T lane[kLanes] = {};

  Tail(const T* from, int64_t count) { __builtin_memcpy(lane, from, count * sizeof(T)); }
  void write(T* to, int64_t count) { __builtin_memcpy(to, lane, count * sizeof(T)); }
};
template <typename T>
struct Tail<const T> : Tail<T> {
  using Tail<T>::Tail;
  void write(const T*, int64_t) {}
};
template <>
struct Tail<None> {
  None* lane = nullptr;

  Tail(const None*, int64_t) {}
  void write(None*, int64_t) {}
};

template <typename T>
inline T* advance(T* at, int64_t i) {
  return at + i;
}
inline None* advance(None* at, int64_t) { return at; }

// Calls step.run(bad, vectors...) for one vector of the arrays after the other. Returns a word that
// is not 0 when a step said that a value is bad.
template <typename Step, typename... T>
uint32_t for_vectors(const Step& step, int64_t count, T*... at) {
  Bad bad = no_bad();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step.run(bad, advance(at, i)...);
  const int64_t rest = count - i;
  if (rest == 0) return any(bad);
  [&](auto&&... tail) {
    step.run(bad, tail.lane...);
    (tail.write(advance(at, i), rest), ...);
  }(Tail<T>(advance(at, i), rest)...);
  return any(bad);
}

template <typename Step, typename Arrays>
uint32_t run(const Step& step, const Arrays& arrays, int64_t begin, int64_t end) {
  return with_types(arrays, begin,
                    [&](auto*... at) { return for_vectors(step, end - begin, at...); });
}

template <bool kCautious>
inline F decayed(F weight, F factor, F update) {
  const F smaller = mul(weight, factor);
  if constexpr (!kCautious) return smaller;
  return where_at_least_zero(mul(update, weight), smaller, weight);
}

// Into all caches; past the end of an array it does nothing. 512 bytes ahead, AdamW on one Zen 4
// core beyond L3, first quartile of 400 interleaved runs: AVX2 takes 0.92-0.94 of the time without,
// AVX-512 0.96-1.01; 2048 bytes ahead is worse, 0.99-1.09. Streaming the low-precision copy past
// the caches takes 0.96-1.02, within what two runs of the same code differ, so it is stored
// plainly.
template <typename T>
inline void prefetch(const T* at) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + 512));
}

template <bool kCautious>
struct AdamWStep {
  F scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, l2, step_size, root_correction2,
      eps;
  bool coupled;

  explicit AdamWStep(const AdamWElement& e)
      : scale(splat(e.gradient_scale)),
        beta1(splat(e.beta1)),
        one_minus_beta1(splat(e.one_minus_beta1)),
        beta2(splat(e.beta2)),
        one_minus_beta2(splat(e.one_minus_beta2)),
        decay(splat(e.decay)),
        l2(splat(e.l2)),
        step_size(splat(e.step_size)),
        root_correction2(splat(e.root_correction2)),
        eps(splat(e.eps)),
        coupled(e.l2 != 0.0f) {}

  template <typename Gradient, typename State, typename Low>
  void run(Bad& bad, float* weight, const Gradient* gradient, State* exp_avg, State* exp_avg_sq,
           Low* low) const {
    prefetch(weight);
    prefetch(gradient);
    prefetch(exp_avg);
    prefetch(exp_avg_sq);
    F w = load(weight);
    F g = mul(load(gradient), scale);
    if (coupled) g = add(g, mul(l2, w));
    const F m = add(mul(beta1, load(exp_avg)), mul(one_minus_beta1, g));
    const F v = add(mul(beta2, load(exp_avg_sq)), mul(one_minus_beta2, mul(g, g)));
    store(exp_avg, m);
    store(exp_avg_sq, v);
    const F denominator = add(div(root(v), root_correction2), eps);
    const F update = div(m, denominator);
    w = sub(decayed<kCautious>(w, decay, update), mul(step_size, update));
    store(weight, w);
    store(low, w);
    bad = or_bad_states(bad, m, v, exp_avg);
    bad = or_bad_weight(bad, w, low);
  }
};

uint32_t adamw(const AdamWElement& element, const AdamWArrays& arrays, int64_t begin, int64_t end) {
  return element.cautious ? run(AdamWStep<true>(element), arrays, begin, end)
                          : run(AdamWStep<false>(element), arrays, begin, end);
}

struct MomentumStep {
  F scale, beta, gain;
  bool nesterov;

  explicit MomentumStep(const MomentumElement& e)
      : scale(splat(e.gradient_scale)),
        beta(splat(e.beta)),
        gain(splat(e.gain)),
        nesterov(e.nesterov) {}

  template <typename Gradient, typename State, typename Wire>
  void run(Bad& bad, const Gradient* gradient, State* momentum, Wire* wire) const {
    const F scaled = mul(gain, mul(load(gradient), scale));
    const F m = add(mul(beta, load(momentum)), scaled);
    const F mixed = nesterov ? add(mul(beta, m), scaled) : m;
    store(momentum, m);
    store(wire, mixed);
    bad = or_bad(bad, m, Range<State>::kFirstNonFinite);
    bad = or_bad(bad, mixed, Range<Wire>::kFirstNonFinite);
  }
};

uint32_t momentum(const MomentumElement& element, const MomentumArrays& arrays, int64_t begin,
                  int64_t end) {
  return run(MomentumStep(element), arrays, begin, end);
}

template <bool kCautious>
struct ApplyStep {
  F decay, step_size;

  explicit ApplyStep(const ApplyElement& e)
      : decay(splat(e.decay)), step_size(splat(e.step_size)) {}

  template <typename Update, typename Low>
  void run(Bad& bad, float* weight, const Update* update, Low* low) const {
    const F u = load(update);
    const F w = sub(decayed<kCautious>(load(weight), decay, u), mul(step_size, u));
    store(weight, w);
    store(low, w);
    bad = or_bad_weight(bad, w, low);
  }
};

uint32_t apply(const ApplyElement& element, const ApplyArrays& arrays, int64_t begin, int64_t end) {
  return element.cautious ? run(ApplyStep<true>(element), arrays, begin, end)
                          : run(ApplyStep<false>(element), arrays, begin, end);
}

struct EncodeStep {
  template <typename Out>
  void run(Bad& bad, const float* values, Out* out) const {
    const F value = load(values);
    bad = or_bad(bad, value, Range<Out>::kFirstNonFinite);
    store(out, value);
  }
};

uint32_t encode_values(const float* values, const Typed& out, int64_t begin, int64_t end) {
  return with_any_type(out, begin, [&](auto* to) {
    return for_vectors(EncodeStep(), end - begin, values + begin, to);
  });
}

struct DecodeStep {
  template <typename In>
  void run(Bad&, const In* in, float* values) const {
    store(values, load(in));
  }
};

void decode_values(const ConstTyped& in, float* values, int64_t begin, int64_t end) {
  with_any_type(in, begin, [&](auto* from) {
    return for_vectors(DecodeStep(), end - begin, from, values + begin);
  });
}

// Calls element(i) up to the first aligned vector of dst and after the last, vector(i) between.
template <typename Element, typename Vector>
void streamed_run(const float* dst, int64_t begin, int64_t end, Element element, Vector vector) {
  int64_t i = begin;
  for (; i < end && !is_aligned(dst + i); ++i) element(i);
  for (; i + kLanes <= end; i += kLanes) vector(i);
  for (; i < end; ++i) element(i);
  fence();
}

void copy(float* dst, const float* a, int64_t begin, int64_t end) {
  streamed_run(
      dst, begin, end, [=](int64_t i) { dst[i] = a[i]; },
      [=](int64_t i) { stream(dst + i, load(a + i)); });
}

void triad(float* dst, const float* a, const float* b, float scalar, int64_t begin, int64_t end) {
  const F scale = splat(scalar);
  streamed_run(
      dst, begin, end, [=](int64_t i) { dst[i] = a[i] + scalar * b[i]; },
      [=](int64_t i) { stream(dst + i, add(load(a + i), mul(scale, load(b + i)))); });
}

constexpr KernelTable kTable = {adamw, momentum, apply, encode_values, decode_values, copy, triad};
