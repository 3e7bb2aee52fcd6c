"""The figures that `zeromuon bench kernels` is to reach. No torch."""

from __future__ import annotations

from collections.abc import Callable

from ..core.results import MEASURED, ROOF, Bench, Case, Figure, Results, Row, faster

_ADAMW, _NS = "adamw", "newton_schulz"
_FLOAT32 = ", float32"
_SQUARES = ("512x512", "1024x1024", "2048x2048")


def figures(results: Results) -> list[Figure]:
    """One per figure to reach of the parts that were asked for."""

    def times(what: str, least: float, part: str, key: str, peer: str) -> Figure:
        return faster(results.case(part, key), what, least, peer)

    gram, standard = "DeepSpeed gram, float32", "DeepSpeed standard, float32"
    adamw = [
        times("fused AdamW over DeepSpeed's chain, fp32 gradients", 1.35, _ADAMW, "fp32", "DeepSpeed's chain"),
        times("fused AdamW over DeepSpeed's chain, bf16 gradients", 1.45, _ADAMW, "bf16", "DeepSpeed's chain"),
        _least(results, "fused AdamW, fp32 gradients, of the copy roof", 0.9, _ADAMW, ("fp32",), _of_copy),
    ]
    newton_schulz = [
        times("Newton-Schulz 1024x4096 over DeepSpeed gram", 1.9, _NS, "1024x4096", gram),
        times("Newton-Schulz 1024x4096 over DeepSpeed standard", 3.1, _NS, "1024x4096", standard),
        _least(results, "squares over DeepSpeed standard, the worst of them", 1.3, _NS, _SQUARES, _over_standard),
        _least(
            results, "share of the product peak, the worst shape from 1024 up", 0.85, _NS, _large(results), _of_peak
        ),
        _least(results, "over the best float32 peer, the worst shape", 0.97, _NS, None, _over_best_float32),
    ]
    parts = {case.part for case in results.cases}
    return [*(adamw if _ADAMW in parts else []), *(newton_schulz if _NS in parts else [])]


def _least(results: Results, what: str, least: float, part: str, keys, value: Callable[[Case], float | None]) -> Figure:
    """The least value of the cases in `keys` (None: all of the part)."""
    cases = [c for c in results.of_part(part) if keys is None or c.key in keys]
    values = [(v, c.key) for c in cases if (v := value(c)) is not None]
    if not values:
        return Figure(what, least, None, "was not part of this run, or could not be measured")
    worst, key = min(values)
    return Figure(what, least, worst, f"{key}, {len(values)} measured")


def _large(results: Results) -> tuple[str, ...]:
    """Keys of the shapes whose short side is 1024 or more."""
    keys = [c.key for c in results.of_part(_NS)]
    return tuple(k for k in keys if k.replace("x", "").isdigit() and min(map(int, k.split("x"))) >= 1024)


def _of_copy(case: Case) -> float | None:
    return _of_roof(case.row("copy roof"))


def _of_peak(case: Case) -> float | None:
    """Of the fastest product."""
    return min((v for row in case.rows if row.kind == ROOF and (v := _of_roof(row)) is not None), default=None)


def _of_roof(row: Row | None) -> float | None:
    return row.of_roof.median if row is not None and row.of_roof else None


def _over_standard(case: Case) -> float | None:
    row = case.row("DeepSpeed standard, float32")
    return row.ratio.median if row is not None and row.ratio else None


def _over_best_float32(case: Case) -> float | None:
    rows = [r for r in case.rows if r.status == MEASURED and r.ratio and r.name.endswith(_FLOAT32)]
    return min((r.ratio.median for r in rows), default=None)


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
