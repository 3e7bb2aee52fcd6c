"""`zeromuon bench kernels`: its options, the order of the measurements, its files. No torch before the options are checked."""

from __future__ import annotations

import argparse
import os

from ....base.parser import Parser
from ..core import interrupt, machine
from ..core.options import add_budget, check_memory, parsed, two_numbers, whole_number
from ..core.session import Session
from . import deepspeed_adam
from .verdicts import KERNELS

PARTS = ("adamw", "newton_schulz")
BUDGET_SECONDS, FULL_SECONDS = 540.0, 3600.0
_LARGEST_SIDE = 65536
_BYTES_PER_ELEMENT = 32  # of a matrix, its copies and the peers' intermediate results
_PROG = "zeromuon bench kernels"


def run(argv: list[str]) -> int:
    """See bench/command.py."""
    options = _options(argv)
    session = Session(KERNELS, options.out, options.budget_seconds)
    return session.run(lambda: _measure(options, session))


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
    shapes = "all shapes, also those that take long (default: those that fit the budget)"
    add("--full", action="store_true", help=shapes)
    shape = two_numbers("ROWSxCOLUMNS", (_LARGEST_SIDE, _LARGEST_SIDE), "1024x4096")
    instead = "this Newton-Schulz shape in place of the list; may be given again"
    add("--shape", action="append", metavar="RxC", type=shape, default=[], help=instead)
    parameters = "of AdamW (default: 64000000; less where memory is short)"
    add("--parameters", metavar="N", type=whole_number(1024, 10**11), help=parameters)
    cores = len(os.sched_getaffinity(0))
    add("--threads", metavar="N", type=whole_number(1, cores), default=cores, help="default: all cores of this process")
    seconds = f"{BUDGET_SECONDS:.0f}; with --full {FULL_SECONDS:.0f}"
    add_budget(parser, None, f" (default: {seconds}); shapes are left out and rounds are fewer to keep to it")
    return parser


def _options(argv: list[str]) -> argparse.Namespace:
    """Raises ValueError for those that cannot be."""
    from ....ranks.machine import available_memory_bytes

    options = parsed(_parser(), argv)
    if options.shape and options.only == "adamw":
        raise ValueError(f"{_PROG}: --shape is of newton_schulz, but --only adamw was given; leave out one of them")
    options.budget_seconds = options.budget_seconds or (FULL_SECONDS if options.full else BUDGET_SECONDS)
    options.shape = list(dict.fromkeys(options.shape))
    for rows, cols in options.shape:
        needed, what = rows * cols * _BYTES_PER_ELEMENT, f"{rows}x{cols} needs"
        check_memory(f"{_PROG} --shape", what, needed, available_memory_bytes(), "choose a smaller one")
    return options


# ---- the run -------------------------------------------------------------------------------------


def _set_threads(threads: int) -> None:
    """Before torch and OpenMP start."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    deepspeed_adam.prepare_environment()
    import torch

    torch.set_num_threads(threads)


def _measure(options: argparse.Namespace, session: Session) -> None:
    _set_threads(options.threads)
    session.results.header += machine.header(options.threads)
    interrupt.point()
    if options.only != "newton_schulz":
        _run_adamw(options, session)
    if options.only != "adamw":
        _run_newton_schulz(options, session)


def _run_adamw(options: argparse.Namespace, session: Session) -> None:
    from . import adamw

    wanted = options.parameters or adamw.DEFAULT_NUMEL
    numel = adamw.numel_that_fits(wanted)
    if numel < wanted:
        why = f"adamw: {numel} parameters of {wanted}, which do not fit half of the free memory"
        session.results.left_out.append(why)
    adamw.run(numel, session)


def _run_newton_schulz(options: argparse.Namespace, session: Session) -> None:
    from . import newton_schulz

    jobs = [newton_schulz.Job(*shape) for shape in options.shape] or newton_schulz.default_jobs()
    newton_schulz.run(jobs, options.full or bool(options.shape), session)
