// The arithmetic of one element, and the loops' bodies over it, for host and device code.
//
// Note [Same bits everywhere]
// Every operation below is a single IEEE-754 multiplication, addition, division or square root in
// float32, and every translation unit that computes them is compiled without contraction
// (-ffp-contract=off, nvcc -fmad=false). So a result is a function of the inputs alone: not of the
// instruction set, the vector width, the number of threads or where a chunk begins. Constants that
// depend on hyper-parameters are computed once in double and rounded. One thing is left open: where
// two NaNs are added, whose payload survives (x86 keeps the first operand's, and compilers swap
// operands; CUDA keeps neither).
//
// The bodies are what the CUDA kernels run, element by element. csrc/ops/reference.cpp runs the
// same code on the host: it is what every fast path is compared with. Each brings its own Flag,
// whose raise() any element may call.
#pragma once

#include <cmath>

#include "csrc/base/dtype.h"
#include "csrc/ops/dispatch.h"

namespace zeromuon::ops {

enum class MomentumKind : uint8_t { kEma, kHeavyBall };

// How the weight decay enters. Decoupled (AdamW, arXiv 1711.05101): the weight shrinks by the
// factor 1 - lr*weight_decay. Cautious (arXiv 2510.12402): decoupled, and only where update*weight
// >= 0, which is where the update moves the weight towards zero, or one of them is zero. Coupled:
// Adam with L2 regularisation, weight_decay*weight is added to the gradient; of AdamW only.
enum class Decay : uint8_t { kDecoupled, kCautious, kCoupled };

// What the elements below are made of. lr, weight_decay: of the role.
struct MuonHyperParameters {
  double lr, weight_decay, momentum;
  MomentumKind kind;
  bool nesterov;
  float gradient_scale = 1.0f;  // multiplied into every gradient first
  Decay decay = Decay::kDecoupled;
};
struct AdamWHyperParameters {
  double lr, weight_decay, beta1, beta2, eps;
  int64_t step;  // 1 at the first step
  Decay decay = Decay::kDecoupled;
  float gradient_scale = 1.0f;
};

ZM_HOST_DEVICE inline float decayed(float weight, float factor, float update, bool cautious) {
  return cautious && !(update * weight >= 0.0f) ? weight : weight * factor;
}

// G' = scale*G, M = beta*M + gain*G', then U = beta*M + gain*G' (nesterov) or U = M.
// gain is 1 - beta for an exponential moving average (torch.optim.Muon) and 1 for heavy ball
// (Moonlight, arXiv 2502.16982), whose nesterov form G' + beta*M is the same expression.
struct MomentumElement {
  float beta;
  float gain;
  float gradient_scale;
  bool nesterov;

  MomentumElement(MomentumKind kind, double beta_value, bool nesterov_value,
                  float gradient_scale_value = 1.0f)
      : beta(static_cast<float>(beta_value)),
        gain(kind == MomentumKind::kEma ? static_cast<float>(1.0 - beta_value) : 1.0f),
        gradient_scale(gradient_scale_value),
        nesterov(nesterov_value) {}
  explicit MomentumElement(const MuonHyperParameters& h)
      : MomentumElement(h.kind, h.momentum, h.nesterov, h.gradient_scale) {}

  ZM_HOST_DEVICE float operator()(float gradient, float& momentum) const {
    const float scaled = gain * (gradient * gradient_scale);
    momentum = beta * momentum + scaled;
    return nesterov ? beta * momentum + scaled : momentum;
  }
};

// W = W*(1 - lr*weight_decay) - (lr*scale)*O. kind: not coupled. decays: whether the weight does.
struct ApplyElement {
  float decay;
  float step_size;
  bool cautious;

  ApplyElement(double lr, double weight_decay, double scale, Decay kind = Decay::kDecoupled)
      : decay(static_cast<float>(1.0 - lr * weight_decay)),
        step_size(static_cast<float>(lr * scale)),
        cautious(kind == Decay::kCautious) {}
  ApplyElement(const MuonHyperParameters& h, bool decays, double scale)
      : ApplyElement(h.lr, decays ? h.weight_decay : 0.0, scale, h.decay) {}

  ZM_HOST_DEVICE void operator()(float& weight, float update) const {
    weight = decayed(weight, decay, update, cautious) - step_size * update;
  }
};

// AdamW (arXiv 1711.05101, algorithm 2, schedule multiplier 1) with g the scaled gradient:
//   m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g
//   p = p*(1 - lr*wd) - lr*(m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)
// Coupled decay: g + wd*p takes the place of g, and p is not shrunk.
struct AdamWElement {
  float gradient_scale;
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay, l2, step_size, root_correction2, eps;
  bool cautious;

  AdamWElement(double lr, double b1, double b2, double epsilon, double weight_decay, int64_t step,
               Decay kind = Decay::kDecoupled, float gradient_scale_value = 1.0f)
      : gradient_scale(gradient_scale_value),
        beta1(static_cast<float>(b1)),
        one_minus_beta1(static_cast<float>(1.0 - b1)),
        beta2(static_cast<float>(b2)),
        one_minus_beta2(static_cast<float>(1.0 - b2)),
        decay(kind == Decay::kCoupled ? 1.0f : static_cast<float>(1.0 - lr * weight_decay)),
        l2(kind == Decay::kCoupled ? static_cast<float>(weight_decay) : 0.0f),
        step_size(static_cast<float>(lr / (1.0 - std::pow(b1, static_cast<double>(step))))),
        root_correction2(
            static_cast<float>(std::sqrt(1.0 - std::pow(b2, static_cast<double>(step))))),
        eps(static_cast<float>(epsilon)),
        cautious(kind == Decay::kCautious) {}
  AdamWElement(const AdamWHyperParameters& h, bool decays)
      : AdamWElement(h.lr, h.beta1, h.beta2, h.eps, decays ? h.weight_decay : 0.0, h.step, h.decay,
                     h.gradient_scale) {}

  ZM_HOST_DEVICE void operator()(float& weight, float gradient, float& m, float& v) const {
    gradient = gradient * gradient_scale;
    if (l2 != 0.0f) gradient = gradient + l2 * weight;
    m = beta1 * m + one_minus_beta1 * gradient;
    v = beta2 * v + one_minus_beta2 * (gradient * gradient);
    const float denominator = sqrtf(v) / root_correction2 + eps;
    const float update = m / denominator;
    weight = decayed(weight, decay, update, cautious) - step_size * update;
  }
};

// The new weight, cast. Returns whether it is not finite as it is written, there or in float32.
template <typename Low>
ZM_HOST_DEVICE inline bool encode_at(float weight, Low* out, int64_t i) {
  encode(weight, out[i]);
  return non_finite_as<Low>(weight);
}
ZM_HOST_DEVICE inline bool encode_at(float weight, None*, int64_t) {
  return non_finite_as<float>(weight);
}

// A state kept in bfloat16 is rounded when it is stored; this step goes on with the float32.
template <typename Gradient, typename State, typename Low, typename Flag>
struct AdamWBody {
  AdamWElement element;
  float* weight;
  const Gradient* gradient;
  State* exp_avg;
  State* exp_avg_sq;
  Low* low_precision;
  Flag non_finite;
  ZM_HOST_DEVICE void operator()(int64_t i) const {
    float m = decode(exp_avg[i]), v = decode(exp_avg_sq[i]);
    element(weight[i], decode(gradient[i]), m, v);
    encode(m, exp_avg[i]);
    encode(v, exp_avg_sq[i]);
    const bool bad_state = non_finite_as<State>(m) || non_finite_as<State>(v);
    if (encode_at(weight[i], low_precision, i) || bad_state) non_finite.raise();
  }
};

template <typename Gradient, typename State, typename Wire, typename Flag>
struct MomentumBody {
  MomentumElement element;
  const Gradient* gradient;
  State* momentum;
  Wire* wire;
  Flag non_finite;
  ZM_HOST_DEVICE void operator()(int64_t i) const {
    float m = decode(momentum[i]);
    const float mixed = element(decode(gradient[i]), m);
    encode(m, momentum[i]);
    if (non_finite_as<Wire>(mixed) || non_finite_as<State>(m)) non_finite.raise();
    encode(mixed, wire[i]);
  }
};

template <typename Update, typename Low, typename Flag>
struct ApplyBody {
  ApplyElement element;
  float* weight;
  const Update* update;
  Low* low_precision;
  Flag non_finite;
  ZM_HOST_DEVICE void operator()(int64_t i) const {
    element(weight[i], decode(update[i]));
    if (encode_at(weight[i], low_precision, i)) non_finite.raise();
  }
};

template <typename Out, typename Flag>
struct EncodeBody {
  const float* values;
  Out* out;
  Flag non_finite;
  ZM_HOST_DEVICE void operator()(int64_t i) const {
    if (non_finite_as<Out>(values[i])) non_finite.raise();
    encode(values[i], out[i]);
  }
};

template <typename In>
struct DecodeBody {
  const In* in;
  float* values;
  ZM_HOST_DEVICE void operator()(int64_t i) const { values[i] = decode(in[i]); }
};

}  // namespace zeromuon::ops
