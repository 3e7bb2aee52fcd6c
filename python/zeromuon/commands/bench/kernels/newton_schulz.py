"""Newton-Schulz of one matrix on the CPU, beside its peers and the fastest product of two matrices.

Operations of the standard form with five steps, m the short and n the long side: 20 m^2 n + 10 m^3.
"""

from __future__ import annotations

import time
import itertools
from dataclasses import dataclass

import torch

from .... import _core, _lab
from ..core import interrupt
from ..core.results import MISSING, OURS, PEER, ROOF, SKIPPED, Accuracy, Case, Row, rows_of
from ..core.session import Progress, Session
from ..core.timing import LEAST_ROUNDS, Budget, Contender, measure, reason
from . import peers

PART = "newton_schulz"
_NO_GRAM = "not installed: pip install --no-deps gram-newton-schulz (its dependencies are for GPUs)"
SHAPES = {
    "MiniLM": ((384, 384), (1536, 384), (384, 1536)),
    "Qwen2.5-3B": ((2048, 2048), (256, 2048), (11008, 2048), (2048, 11008)),
    "Llama-3-8B": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
    "square": ((512, 512), (1024, 1024)),
    "8:1": ((512, 4096), (1024, 8192)),
}
OURS_NAMES = {"float32": "zeromuon", "bfloat16": "zeromuon, bfloat16"}  # the first is what others are compared with
BATCH, BATCH_SHAPE = 24, (384, 384)
PRODUCT_SIZES = (1024, 1536, 2048)
SLOW_SAMPLE_SECONDS, _QUICK_SAMPLE_SECONDS = 30.0, 1.0  # a longer sample is taken with fewer rows; without --full
_FIRST = ("512x512", "1024x1024", "1024x4096")
_SINGULAR_SHORT, _SINGULAR_LONG = 1024, 4096  # the largest matrix whose singular values are looked at
_ROUNDS_PLANNED = LEAST_ROUNDS + 1  # with the warm-up
_PROBE_SECONDS = 0.5
_LEAST_SECONDS = 1.5  # of a case
_ROWS_LEAST = 32


@dataclass(frozen=True)
class Job:
    """rows, cols: of each of `count` matrices. owner: whose shape it is."""

    rows: int
    cols: int
    owner: str = ""
    count: int = 1

    @property
    def key(self) -> str:
        return f"{self.rows}x{self.cols}" + (f" x {self.count}" if self.count > 1 else "")

    @property
    def operations(self) -> float:
        """Of the standard form, all matrices."""
        short, long = sorted((self.rows, self.cols))
        return self.count * (20.0 * short * short * long + 10.0 * short**3)


def default_jobs() -> list[Job]:
    """All shapes and the batch: those that the figures to reach are about, then the others, the cheapest first."""
    jobs = [Job(*shape, owner) for owner, shapes in SHAPES.items() for shape in shapes]
    jobs.append(Job(*BATCH_SHAPE, "batch", BATCH))
    return sorted(jobs, key=lambda job: (job.key not in _FIRST, job.operations))


def run(jobs: list[Job], everything: bool, session: Session) -> None:
    """Measures each job. everything: none is left out for want of time."""
    peers.prepare_torch()
    budget, progress, left_out = session.budget, session.progress, session.results.left_out
    progress.say("Newton-Schulz: loading the peers")
    race = Race(*_load_peers(), Rates(), progress, SLOW_SAMPLE_SECONDS if everything else _QUICK_SAMPLE_SECONDS)
    if not everything:
        jobs, too_long = _that_fit(jobs, race, budget)
        left_out += too_long
    for number, job in enumerate(jobs):
        if number and not everything and race.estimate(job) > budget.left():
            left_out.append(f"{job.key} ({job.owner}): too little of the budget was left; --full measures it")
            continue
        progress.say(f"Newton-Schulz, case {number + 1} of {len(jobs)}: {job.key}")
        for case in race.cases(job, _share(jobs[number:], race, budget)):
            session.add(case)


def _share(jobs: list[Job], race: Race, budget: Budget) -> float:
    """Seconds for the first of those that are left: what they need at least is theirs."""
    spare = max(0.0, budget.left() - sum(map(race.estimate, jobs[1:])))
    share = spare * jobs[0].operations / sum(job.operations for job in jobs)
    return max(_LEAST_SECONDS, share * LEAST_ROUNDS / _ROUNDS_PLANNED)


def _that_fit(jobs: list[Job], race: Race, budget: Budget) -> tuple[list[Job], list[str]]:
    """Those that fit the budget in their order, the first in any case, and a line for each other."""
    kept, left_out, planned = [], [], 0.0
    for job in jobs:
        seconds = race.estimate(job)
        if kept and planned + seconds > budget.left():
            why = f"about {seconds:.0f} s are more than the budget has left; --full measures it"
            left_out.append(f"{job.key} ({job.owner}): {why}")
        else:
            kept.append(job)
            planned += seconds
    return kept, left_out


def _load_peers() -> tuple[list[peers.Peer], list[Row]]:
    """Peers, and a row for each that is not there."""
    loaded, absent = [], []
    for library, in_float32 in itertools.product(peers.LIBRARIES, (True, False)):
        interrupt.point()
        try:
            loaded.append(peers.load(library, in_float32))
            continue
        except ImportError as error:
            why = _NO_GRAM if "gram_newton_schulz" in str(error) else str(error)
        except Exception as error:
            why = reason(error)
        absent.append(Row(peers.name_of(library, in_float32), PEER, MISSING, why))
    return loaded, absent


class Rates(dict):
    """dtype -> operations per second of small products, measured when first asked for."""

    def __missing__(self, dtype: str) -> float:
        self[dtype] = _product_rate(getattr(torch, dtype), 512 if dtype == "float32" else 256)
        return self[dtype]


def _product_rate(dtype: torch.dtype, size: int) -> float:
    """On one thread, times the threads: short products on all threads say little on a busy machine."""
    threads, samples = torch.get_num_threads(), []
    matrix = torch.ones(size, size, dtype=dtype)
    torch.set_num_threads(1)
    try:
        while len(samples) < 3 or (len(samples) < 50 and sum(samples) < _PROBE_SECONDS):
            start = time.perf_counter()
            matrix @ matrix
            samples.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return threads * 2.0 * size**3 / min(samples)


@dataclass
class Race:
    """Makes the cases of a job. loaded: the peers. absent: rows of those that are not there. limit: seconds; a peer whose
    sample takes longer, and much longer than those in float32, gets a case of its own with fewer rows."""

    loaded: list[peers.Peer]
    absent: list[Row]
    rates: Rates
    progress: Progress
    limit: float

    def estimate(self, job: Job) -> float:
        """Seconds that the fast contenders of `job` take at least: peers at the float32 rate, ours as one of them."""
        slow = self._slow(job)
        fast = len(OURS_NAMES) + len(self.loaded) - len(slow)
        return _ROUNDS_PLANNED * (fast * job.operations / self.rates["float32"] + self.limit * len(slow))

    def cases(self, job: Job, seconds: float) -> list[Case]:
        """The case of the job, and one with fewer rows for the peers that take too long. seconds: for all."""
        slow = self._slow(job)
        fast = [p for p in self.loaded if p not in slow]
        scaled = self._scaled(job, slow)
        where = f"see {scaled.key} below" if scaled else "fewer rows do not help"
        skipped = [
            Row(p.name, PEER, SKIPPED, f"{p.dtype}, about {self._seconds(p, job):.0f} s each time; {where}", p.dtype)
            for p in slow
        ]
        cases = [self._case(job, fast, [*skipped, *self.absent], seconds)]
        if scaled:
            self.progress.say(f"Newton-Schulz, {job.key} with rows scaled to {scaled.rows}")
            cases.append(self._case(scaled, slow, [], _LEAST_SECONDS, f"{job.key}, rows scaled to {scaled.rows}"))
        return cases

    def _slow(self, job: Job) -> list[peers.Peer]:
        typical = 2 * job.operations / self.rates["float32"]
        return [p for p in self.loaded if self._seconds(p, job) > max(self.limit, typical)]

    def _seconds(self, peer: peers.Peer, job: Job) -> float:
        return job.operations / self.rates[peer.dtype]

    def _scaled(self, job: Job, slow: list[peers.Peer]) -> Job | None:
        """`job` with rows halved until its slowest peer is within the limit; None if there is none to scale."""
        rows = job.rows
        while slow and rows > _ROWS_LEAST:
            rows //= 2
            smaller = Job(rows, job.cols, job.owner, job.count)
            if all(self._seconds(peer, smaller) <= self.limit for peer in slow):
                return smaller
        return None

    def _case(self, job: Job, racing: list[peers.Peer], absent: list[Row], seconds: float, key: str = "") -> Case:
        seeds = [torch.Generator().manual_seed(i) for i in range(job.count)]
        matrices = [torch.randn(job.rows, job.cols, generator=seed) for seed in seeds]
        ours, missing = _all_of_ours(job, matrices)
        contenders = [*ours, *(_peer(peer, matrices) for peer in racing)]
        samples = measure([*contenders, *(roofs := _products())], seconds, self.progress.round)
        rows = [_judged(row, samples.outputs.get(row.name)) for row in rows_of([*contenders, *roofs], samples)]
        title, own = f"{key or job.key} ({job.owner})" if job.owner else key or job.key, len(contenders)
        return Case(PART, key or job.key, title, "FLOP/s", [*rows[:own], *missing, *absent, *rows[own:]])


def _judged(row: Row, result: torch.Tensor | None) -> Row:
    """The row with what its result is like; roofs have none of interest."""
    if row.kind != ROOF and result is not None:
        if torch.isfinite(result).all():
            row.accuracy = _accuracy(result)
        else:
            row.note = f"{row.note}; THE RESULT IS NOT FINITE"
    return row


def _all_of_ours(job: Job, matrices: list[torch.Tensor]) -> tuple[list[Contender], list[Row]]:
    """Ours in each dtype, and a row for each that cannot run here."""
    contenders, missing = [], []
    for dtype, name in OURS_NAMES.items():
        try:
            contenders.append(_ours(job, dtype, matrices))
        except ValueError as error:
            missing.append(Row(name, OURS, MISSING, str(error)))
    return contenders, missing


def _ours(job: Job, dtype: str, matrices: list[torch.Tensor]) -> Contender:
    """dtype: of the products. Raises ValueError where the processor has no products in it."""
    lanes = torch.get_num_threads() if job.count > 1 else 1
    request = _core.NewtonSchulzRequest(form="auto", dtype=dtype, coefficients=_core.CoefficientSet("jordan"))
    operation = _lab.NewtonSchulz(job.rows, job.cols, request, lanes=lanes)

    def run(copies):
        operation.run_(copies)
        return copies[0]

    plan, name, work = operation.describe(), OURS_NAMES[dtype], operation.flops * job.count
    note = f"{plan['form']}, {plan['dtype']}, {'/'.join(dict.fromkeys(plan['backends']))}"
    return Contender(name, run, lambda: [m.clone() for m in matrices], OURS, work, note)


def _peer(peer: peers.Peer, matrices: list[torch.Tensor]) -> Contender:
    @torch.no_grad()
    def run(copies):
        return [peer.function(copy) for copy in copies][0]

    return Contender(peer.name, run, lambda: [m.clone() for m in matrices], PEER, note=peer.dtype)


def _products() -> list[Contender]:
    """Roofs: the product of two squares in float32, by torch and by oneDNN where it is in the build."""
    backends = ("torch", "onednn") if _core.this_cpu().name.endswith("+onednn") else ("torch",)
    return [_product(size, backend) for size in PRODUCT_SIZES for backend in backends]


def _product(size: int, backend: str) -> Contender:
    # Rows as in Newton-Schulz's own memory: a multiple of 1 KiB apart they would get in each other's way.
    a, b, out = (torch.ones(size, size + 32)[:, :size] for _ in range(3))
    by_torch, by_onednn = lambda _: torch.mm(a, b, out=out), lambda _: _lab.multiply_(out, a, b, "onednn")
    name, run = (f"torch.mm {size}", by_torch) if backend == "torch" else (f"oneDNN {size}", by_onednn)
    return Contender(name, run, kind=ROOF, work=2.0 * size**3)


def _accuracy(result: torch.Tensor) -> Accuracy | None:
    """Of small matrices only: the singular values come from X X^T in double, good to 1e-8."""
    if min(result.shape) > _SINGULAR_SHORT or max(result.shape) > _SINGULAR_LONG:
        return None
    x = result.double() if result.size(0) <= result.size(1) else result.double().T
    singular = torch.linalg.eigvalsh(x @ x.T).clamp_min(0).sqrt()
    return Accuracy((singular - 1).abs().mean().item(), singular.min().item(), singular.max().item())
