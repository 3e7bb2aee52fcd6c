"""The figures that `zeromuon bench kernels` is to reach. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..core.results import Bench, Case, Figure, Results, faster
from ..core.timing import Ratio

_ADAMW, _NS = "adamw", "newton_schulz"
_STANDARD = "DeepSpeed standard, float32"
_SQUARES = ("512x512", "1024x1024", "2048x2048")


def figures(results: Results) -> list[Figure]:
    """One per figure to reach of the parts that were asked for."""
    found = _of_adamw(results) if results.of_part(_ADAMW) else []
    return [*found, *(_of_newton_schulz(results) if results.of_part(_NS) else [])]


def _of_adamw(results: Results) -> list[Figure]:
    chain, fp32, bf16 = "DeepSpeed's chain", results.case(_ADAMW, "fp32"), results.case(_ADAMW, "bf16")
    return [
        faster(fp32, "fused AdamW over DeepSpeed's chain, fp32 gradients", 1.35, chain),
        faster(bf16, "fused AdamW over DeepSpeed's chain, bf16 gradients", 1.45, chain),
        _least([fp32], "fused AdamW, fp32 gradients, of the copy roof", 0.9, _of_copy),
    ]


def _of_newton_schulz(results: Results) -> list[Figure]:
    wide, cases = results.case(_NS, "1024x4096"), results.of_part(_NS)
    squares = [results.case(_NS, key) for key in _SQUARES]
    large = [c for c in cases if re.fullmatch(r"\d+x\d+", c.key) and min(map(int, c.key.split("x"))) >= 1024]
    return [
        faster(wide, "Newton-Schulz 1024x4096 over DeepSpeed gram", 1.9, "DeepSpeed gram, float32"),
        faster(wide, "Newton-Schulz 1024x4096 over DeepSpeed standard", 3.1, _STANDARD),
        _least(squares, "squares over DeepSpeed standard, the worst of them", 1.3, _over_standard),
        _least(large, "share of the product peak, the worst shape from 1024 up", 0.85, _of_peak),
        _least(cases, "over the best float32 peer, the worst shape", 0.97, _over_best_float32),
    ]


def _least(cases: list[Case | None], what: str, least: float, ratios: Callable[[Case], list[Ratio | None]]) -> Figure:
    """The least of the ratios of all cases."""
    known = [(min(r.median for r in found), c.key) for c in cases if c and (found := list(filter(None, ratios(c))))]
    if not known:
        return Figure(what, least, None, "was not part of this run, or could not be measured")
    worst, key = min(known)
    return Figure(what, least, worst, f"{key}, {len(known)} measured")


def _of_copy(case: Case) -> list[Ratio | None]:
    return [row.of_roof for row in case.rows if row.name == "copy roof"]


def _of_peak(case: Case) -> list[Ratio | None]:
    return [row.of_roof for row in case.rows]


def _over_standard(case: Case) -> list[Ratio | None]:
    return [row.ratio for row in case.rows if row.name == _STANDARD]


def _over_best_float32(case: Case) -> list[Ratio | None]:
    return [row.ratio for row in case.rows if row.name.endswith(", float32")]


KERNELS = Bench(
    "kernels",
    legend=(
        "ms: median of the rounds. ratio: the median over the rounds of a contender's time divided by that of the first line in",
        "the same round; above 1 ours is faster. least..most: of those. of roof: what the first line reaches of that roof's rate.",
        "singular values s: of the result for a Gaussian matrix; Newton-Schulz with these coefficients aims at 0.7 to 1.2.",
    ),
    stated_for="2 AVX2 cores",
    figures=figures,
    titles={_ADAMW: "Elementwise passes", _NS: "Newton-Schulz"},
)
