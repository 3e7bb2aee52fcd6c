"""`zeromuon bench tune`: measures how the products of Newton-Schulz are best cut on this kind of machine.

Prints the rows of ``csrc/ops/newton_schulz/tuned_table.inc`` for the instruction set in use; a developer checks them in.
It never runs on its own: results must not depend on timing. ``ZEROMUON_MAX_CPU_ISA=avx2`` (with
``MKL_ENABLE_INSTRUCTIONS=AVX2`` for Intel's BLAS) makes the rows of a lesser machine.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from ....base.parser import Parser
from ..core import interrupt

KINDS = ("gram", "square", "apply")
# Short sides that share a row, and the long side measured with each. None: all that are larger, measured at 3072.
CLASSES = ((64, 256), (128, 512), (256, 1024), (384, 1536), (512, 2048), (1024, 4096), (2048, 4096), (None, 4096))
_LARGEST = 3072
_TILES = (64, 96, 128, 192, 256, 384, 512, 1024)
_LEAVES = (64, 96, 128, 192, 256)
# Among cuts that are this near to the best the smallest tile is taken: it keeps more threads busy.
_NEAR = 1.02
_CPP_NAMES = {"float32": "kF32", "bfloat16": "kBF16", "blas": "kBlas", "onednn": "kOneDnn"}


@dataclass(frozen=True)
class Cut:
    """One way of cutting a product."""

    backend: str
    tile: int
    leaf: int
    transposed: bool


def candidates(kind: str, side: int, backends: tuple[str, ...]) -> list[Cut]:
    """The cuts worth measuring for a short side of `side`."""
    largest = side if side <= 256 else max(256, side // 4)
    tiles = [t for t in _TILES if t <= largest and t * 8 >= min(side, 1024)]
    transposed = (False, True) if kind == "square" else (False,)
    cuts = []
    for tile in tiles:
        leaves = [tile] if kind == "apply" else [n for n in _LEAVES if n <= tile and n * 2 >= min(tile, 256)]
        cuts += [Cut(b, tile, leaf, t) for b in backends for leaf in leaves for t in transposed]
    return cuts


def measure(kind: str, side: int, long_side: int, dtype: str, cut: Cut) -> tuple[float, float]:
    """(processor seconds of the product, GFLOP/s of the tiles computed), on one thread."""
    from .... import _lab

    row = _lab.TunedProduct(kind=kind, short_side=side, dtype=dtype, **asdict(cut))
    seconds, flops = _lab.time_product(row, long_side, repetitions=9 if side <= 512 else 3)
    return seconds, 1e-9 * flops / seconds


def best_cut(measured: dict[Cut, tuple[float, float]]) -> tuple[Cut, float]:
    """The cut to take, and its GFLOP/s."""
    least = min(seconds for seconds, _ in measured.values())
    near = [cut for cut, (seconds, _) in measured.items() if seconds <= _NEAR * least]
    cut = min(near, key=lambda c: (c.tile, measured[c][0]))
    return cut, measured[cut][1]


def row_text(target: str, dtype: str, kind: str, bound: int | None, cut: Cut, gflops: float) -> str:
    """One row of the table, as C++."""
    side, transposed = "kAny" if bound is None else str(bound), str(cut.transposed).lower()
    first = f'"{target}", {_CPP_NAMES[dtype]}, k{kind.capitalize()}, {side}, {_CPP_NAMES[cut.backend]}'
    return f"{{{first}, {cut.tile}, {cut.leaf}, {transposed}, {gflops:.0f}}},"


def tune(progress) -> list[str]:
    """Rows for this machine: bfloat16 where it has the hardware, else float32, each with and without oneDNN."""
    from .... import _core

    target = _core.this_cpu().row_name
    isa, _, onednn = target.partition("+")
    has_bfloat16 = isa.endswith(("avx512_bf16", "amx_bf16")) and onednn
    dtype = "bfloat16" if has_bfloat16 else "float32"
    backends = ("onednn",) if has_bfloat16 else ("blas", "onednn") if onednn else ("blas",)
    rows = []
    for kind in KINDS:
        for bound, long_side in CLASSES:
            side = bound or _LARGEST
            measured = {}
            for cut in candidates(kind, side, backends):
                interrupt.point()
                measured[cut] = measure(kind, side, long_side, dtype, cut)
            progress(f"{target} {dtype} {kind} {side}x{long_side}: {len(measured)} cuts")
            rows.append(row_text(target, dtype, kind, bound, *best_cut(measured)))
            blas = {cut: m for cut, m in measured.items() if cut.backend == "blas"}
            if onednn and blas:
                rows.append(row_text(isa, dtype, kind, bound, *best_cut(blas)))
    return sorted(rows, key=lambda row: row.split(",")[0], reverse=True)


def run(argv: list[str]) -> int:
    """Prints the rows, progress goes to stderr; see bench/command.py."""
    import torch  # noqa: F401  (the core needs it loaded)

    Parser(prog="zeromuon bench tune", description=__doc__.partition("\n\n")[2].strip()).parse(argv)
    try:
        with interrupt.deferred():
            rows = tune(lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("interrupted; no rows, as the table needs all of them", file=sys.stderr)
        return interrupt.INTERRUPTED
    print("\n".join(rows))
    return 0
