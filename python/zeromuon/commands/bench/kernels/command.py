"""`zeromuon bench kernels`: its options, the order of the measurements, its files. No torch before the options are checked."""

from __future__ import annotations

import argparse
import os
import re

from . import deepspeed_adam
from ..core import interrupt, machine, report
from ....base.parser import Parser
from ..core.options import new_folder, whole_number
from ..core.progress import Progress
from ..core.results import Case, Results
from ..core.timing import Budget
from .verdicts import KERNELS

PARTS = ("adamw", "newton_schulz")
BUDGET_SECONDS, FULL_SECONDS = 540.0, 3600.0
_LARGEST_SIDE = 65536
_BYTES_PER_ELEMENT = 32  # of a matrix, its copies and the peers' intermediate results
_PROG = "zeromuon bench kernels"


def run(argv: list[str]) -> int:
    """Returns the exit status: 0, or 130 when interrupted; it does not depend on what was measured.

    Raises ValueError for bad arguments, before anything is measured or written.
    """
    with interrupt.deferred() as wish:
        options = _checked(_parser().parse(argv))
        _set_threads(options.threads)
        budget = Budget(options.budget_seconds)
        progress = Progress(budget)
        results = _measured(options, budget, progress)
        progress.close()
        results.seconds = budget.elapsed()
        return report.finish(options.out, results, wish)


# ---- options -------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog=_PROG,
        description="Measures the CPU kernels of this package beside DeepSpeed's, torch's and others' in one process: contenders\n"
        "take turns, and ratios are medians of pairs of one round. Ends with a table, a JSON file and a picture.\n\n"
        "  adamw          AdamW, momentum and apply; against the speed of a copy in memory\n"
        "  newton_schulz  the orthogonalisation of weights' shapes; against the fastest product of two matrices",
        epilog="A contender that is not installed or fails is a row that says why. Exit status: 0, 2 for bad input, 130 when\n"
        "interrupted (what was measured until then is written); it does not depend on what was measured. Ctrl-C ends the run\n"
        "after the sample that is being taken, a second one at once.",
    )
    add = parser.add_argument
    add("--only", choices=PARTS, help="measure this part only")
    add(
        "--full", action="store_true", help="all shapes, also those that take long (default: those that fit the budget)"
    )
    add(
        "--shape",
        action="append",
        metavar="RxC",
        help="this Newton-Schulz shape in place of the list; may be given again",
    )
    add("--parameters", metavar="N", help="of AdamW (default: 64000000; less where memory is short)")
    add("--threads", metavar="N", help="default: all cores of this process")
    add(
        "--budget-seconds",
        metavar="S",
        help=f"wall time for all, about (default: {BUDGET_SECONDS:.0f}; with --full "
        f"{FULL_SECONDS:.0f}); shapes are left out and rounds are fewer to keep to it",
    )
    add("--out", metavar="DIR", help="folder of the results (default: bench-kernels-<time>)")
    return parser


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options as values. Raises ValueError for those that cannot be."""
    if options.shape and options.only == "adamw":
        raise ValueError(f"{_PROG}: --shape is of newton_schulz, but --only adamw was given; leave out one of them")
    cores = len(os.sched_getaffinity(0))
    options.threads = _number("--threads", options.threads, cores, 1, cores)
    options.parameters = _number("--parameters", options.parameters, None, 1024, 10**11)
    seconds = FULL_SECONDS if options.full else BUDGET_SECONDS
    options.budget_seconds = _number("--budget-seconds", options.budget_seconds, seconds, 1, 10**6)
    options.shape = [_shape(text) for text in dict.fromkeys(options.shape or [])]
    options.out = new_folder(_PROG, options.out, report.json_file("kernels"))
    return options


def _number(option: str, text: str | None, default, least: int, most: int):
    return whole_number(_PROG, option, text, default, least, most)


def _shape(text: str) -> tuple[int, int]:
    from ....ranks.machine import available_memory_bytes

    found = re.fullmatch(r"(\d+)x(\d+)", text)
    rows, cols = map(int, found.groups()) if found else (0, 0)
    if not (1 <= rows <= _LARGEST_SIDE and 1 <= cols <= _LARGEST_SIDE):
        raise ValueError(
            f'{_PROG} --shape: expected ROWSxCOLUMNS, each from 1 to {_LARGEST_SIDE}, got "{text}"; e.g. --shape 1024x4096'
        )
    needed, free = rows * cols * _BYTES_PER_ELEMENT, available_memory_bytes()
    if needed > free:
        raise ValueError(
            f"{_PROG} --shape: {text} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose a smaller one"
        )
    return rows, cols


# ---- the run -------------------------------------------------------------------------------------


def _set_threads(threads: int) -> None:
    """Before torch and OpenMP start."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    deepspeed_adam.prepare_environment()
    import torch

    torch.set_num_threads(threads)


def _measured(options: argparse.Namespace, budget: Budget, progress: Progress) -> Results:
    results, others = Results(machine.header(options.threads), bench=KERNELS), machine.OtherLoad()

    def add(case: Case) -> None:
        results.cases.append(case)
        report.write_json(options.out, results)

    try:
        interrupt.point()
        if options.only != "newton_schulz":
            _run_adamw(options, results, budget, progress, add)
        if options.only != "adamw":
            _run_newton_schulz(options, results, budget, progress, add)
    except KeyboardInterrupt:
        results.interrupted = True
    results.header.append(("other processes", others.words()))
    return results


def _run_adamw(options, results: Results, budget: Budget, progress: Progress, add) -> None:
    from . import adamw

    wanted = options.parameters or adamw.DEFAULT_NUMEL
    numel = adamw.numel_that_fits(wanted)
    if numel < wanted:
        results.left_out.append(f"adamw: {numel} parameters of {wanted}, which do not fit half of the free memory")
    adamw.run(numel, budget, progress, add)


def _run_newton_schulz(options, results: Results, budget: Budget, progress: Progress, add) -> None:
    from . import newton_schulz

    jobs = [newton_schulz.Job(*shape) for shape in options.shape] or newton_schulz.default_jobs()
    everything = options.full or bool(options.shape)
    results.left_out += newton_schulz.run(jobs, everything, budget, progress, add)
