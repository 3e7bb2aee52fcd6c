#include "csrc/ops/newton_schulz/coefficients.h"

#include <cmath>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

constexpr Triple kJordan{3.4445, -4.775, 2.0315};

constexpr double kPolarExpressSafety = 1.01;

const std::vector<Triple> kPolarExpress = {
    {8.28721201814563, -23.595886519098837, 17.300387312530933},
    {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
    {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
    {3.3184196573706015, -2.488488024314874, 0.51004894012372},
    {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
    {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
    {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
    {1.875, -1.25, 0.375},
};

// Polar Express evaluates every polynomial at x/safety, so that a singular value which rounding put
// above 1 still converges; the eighth step, the limit of the sequence, is taken as it is.
std::vector<Triple> polar_express(int steps) {
  std::vector<Triple> triples(kPolarExpress.begin(), kPolarExpress.begin() + steps);
  constexpr double s = kPolarExpressSafety;
  for (size_t k = 0; k < triples.size() && k < 7; ++k) {
    triples[k] = {triples[k].a / s, triples[k].b / (s * s * s), triples[k].c / (s * s * s * s * s)};
  }
  return triples;
}

std::vector<Triple> deepseek_v4() {
  std::vector<Triple> triples(8, kJordan);
  triples.insert(triples.end(), 2, Triple{2.0, -1.5, 0.5});
  return triples;
}

std::vector<CoefficientSet> make_sets() {
  return {
      {"jordan", std::vector<Triple>(5, kJordan), 1.0, false, "K. Jordan, Muon; torch.optim.Muon",
       1.0, RoundedUse::kEveryForm},
      {"you",
       {{4.0848, -6.8946, 2.9270},
        {3.9505, -6.3029, 2.6377},
        {3.7418, -5.5913, 2.3037},
        {2.8769, -3.1427, 1.2046},
        {2.8366, -3.0525, 1.2012}},
       1.0,
       false,
       "J. You, quintic; modded-nanogpt",
       1.0,
       RoundedUse::kEveryForm},
      {"polar_express", polar_express(5), kPolarExpressSafety, false, "arXiv 2505.16932, 5 steps"},
      {"polar_express_6", polar_express(6), kPolarExpressSafety, false, "arXiv 2505.16932, 6 steps",
       1.0, RoundedUse::kStandardForm, RoundedUse::kRestarts},
      {"polar_express_8", polar_express(8), kPolarExpressSafety, false, "arXiv 2505.16932, 8 steps",
       1.0, RoundedUse::kStandardForm},
      {"cans",
       {{8.4703, -25.1081, 18.6293},
        {4.1828, -3.1087, 0.5806},
        {3.9619, -2.9541, 0.5630},
        {3.2866, -2.4647, 0.5074},
        {2.2737, -1.6447, 0.4162}},
       1.0,
       false,
       "arXiv 2506.10935",
       1.0,
       RoundedUse::kNone,
       RoundedUse::kNone},
      {"cubic",
       {{3.3656576, -3.3420992, 0},
        {2.5744352, -1.4957376, 0},
        {2.5368962, -1.431257, 0},
        {2.4418906, -1.276404, 0},
        {2.2230472, -0.963065, 0}},
       1.0,
       false,
       "arXiv 2606.00371, no quintic term",
       1.0,
       RoundedUse::kEveryForm},
      {"deepseek_v4", deepseek_v4(), 1.0, false, "DeepSeek-V4, 8 + 2 steps", 1.0,
       RoundedUse::kStandardForm, RoundedUse::kStandardForm},
      {"aol_4",
       {{4.0098, -7.0585, 2.4635},
        {3.4585, -5.5479, 2.5959},
        {2.7573, -3.2939, 1.4254},
        {2.7215, -3.0494, 1.3169}},
       1.0,
       true,
       "arXiv 2512.04632, rows scaled first",
       1.0,
       RoundedUse::kStandardForm},
  };
}

}  // namespace

const std::vector<CoefficientSet>& coefficient_sets() {
  static const std::vector<CoefficientSet> sets = make_sets();
  return sets;
}

const CoefficientSet& find_coefficient_set(std::string_view name) {
  std::string valid;
  for (const CoefficientSet& set : coefficient_sets()) {
    if (set.name == name) return set;
    valid += (valid.empty() ? "" : ", ") + set.name;
  }
  throw_value_error(concat("ns: unknown coefficient set \"", name, "\"; valid names: ", valid,
                           "; or pass a list of (a, b, c) triples"));
}

CoefficientSet custom_coefficient_set(std::vector<Triple> triples) {
  require(!triples.empty(), "ns: expected at least one (a, b, c) triple, got none");
  for (size_t i = 0; i < triples.size(); ++i) {
    const auto& [a, b, c] = triples[i];
    require(std::isfinite(a) && std::isfinite(b) && std::isfinite(c), "ns: triple ", i,
            " is not finite: (", a, ", ", b, ", ", c, ")");
  }
  return {"custom", std::move(triples), 1.0, false, "given by the user", 1.1};
}

}  // namespace zeromuon::ops
