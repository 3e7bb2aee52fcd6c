// The arithmetic of one element, shared by the host loops and the CUDA kernels.
//
// Note [Same bits everywhere]
// Every operation below is a single IEEE-754 multiplication, addition, division or square root in
// float32, and every translation unit that includes this file is compiled without contraction
// (-ffp-contract=off, nvcc -fmad=false). So a result is a function of the inputs alone: not of the
// instruction set, the vector width, the number of threads or where a chunk begins. Constants that
// depend on hyper-parameters are computed once in double and rounded.
#pragma once

#include <cmath>

#include "csrc/base/dtype.h"

namespace zeromuon::ops {

enum class MomentumKind : uint8_t { kEma, kHeavyBall };

// M = beta*M + gain*G, then U = beta*M + gain*G (nesterov) or U = M.
// gain is 1 - beta for an exponential moving average (torch.optim.Muon) and 1 for heavy ball
// (Moonlight, arXiv 2502.16982), whose nesterov form G + beta*M is the same expression.
struct MomentumElement {
  float beta;
  float gain;
  bool nesterov;

  MomentumElement(MomentumKind kind, double beta_value, bool nesterov_value)
      : beta(static_cast<float>(beta_value)),
        gain(kind == MomentumKind::kEma ? static_cast<float>(1.0 - beta_value) : 1.0f),
        nesterov(nesterov_value) {}

  ZM_HOST_DEVICE float operator()(float gradient, float& momentum) const {
    const float scaled = gain * gradient;
    momentum = beta * momentum + scaled;
    return nesterov ? beta * momentum + scaled : momentum;
  }
};

// W = W*(1 - lr*weight_decay) - (lr*scale)*O, decoupled decay (AdamW, arXiv 1711.05101).
struct ApplyElement {
  float decay;
  float step_size;

  ApplyElement(double lr, double weight_decay, double scale)
      : decay(static_cast<float>(1.0 - lr * weight_decay)),
        step_size(static_cast<float>(lr * scale)) {}

  ZM_HOST_DEVICE void operator()(float& weight, float update) const {
    weight = weight * decay - step_size * update;
  }
};

// AdamW (arXiv 1711.05101, algorithm 2, schedule multiplier 1):
//   m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g*g
//   p = p*(1 - lr*wd) - lr*(m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)
// Coupled decay is Adam with L2 regularisation: g + wd*p takes the place of g, and p is not shrunk.
enum class Decay : uint8_t { kDecoupled, kCoupled };

struct AdamWElement {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay, l2, step_size, root_correction2, eps;

  AdamWElement(double lr, double b1, double b2, double epsilon, double weight_decay, int64_t step,
               Decay kind = Decay::kDecoupled)
      : beta1(static_cast<float>(b1)),
        one_minus_beta1(static_cast<float>(1.0 - b1)),
        beta2(static_cast<float>(b2)),
        one_minus_beta2(static_cast<float>(1.0 - b2)),
        decay(kind == Decay::kDecoupled ? static_cast<float>(1.0 - lr * weight_decay) : 1.0f),
        l2(kind == Decay::kDecoupled ? 0.0f : static_cast<float>(weight_decay)),
        step_size(static_cast<float>(lr / (1.0 - std::pow(b1, static_cast<double>(step))))),
        root_correction2(
            static_cast<float>(std::sqrt(1.0 - std::pow(b2, static_cast<double>(step))))),
        eps(static_cast<float>(epsilon)) {}

  ZM_HOST_DEVICE void operator()(float& weight, float gradient, float& m, float& v) const {
    if (l2 != 0.0f) gradient = gradient + l2 * weight;
    m = beta1 * m + one_minus_beta1 * gradient;
    v = beta2 * v + one_minus_beta2 * (gradient * gradient);
    const float denominator = sqrtf(v) / root_correction2 + eps;
    weight = weight * decay - step_size * (m / denominator);
  }
};

}  // namespace zeromuon::ops
