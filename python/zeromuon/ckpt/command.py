"""`zeromuon ckpt VERB`: runs the verb, prints what it found, and says how it ended. No torch."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path

from ..base.words import did_you_mean
from . import inspect_text, report_text
from .options import NUMBERS, VERBS, parser_of
from .progress import ProgressBar
from .text import printable

FINE, FOUND = 0, 1
JOURNAL = ".zeromuon-journal"  # beside the outputs of a run that was interrupted


def run(argv: list[str]) -> int:
    """`zeromuon ckpt`; returns the exit status: 0; 1 where verify found problems or diff differences; 130 after Ctrl-C
    (143 after SIGTERM, 141 when nobody reads the output).

    Raises ValueError for bad options and bad input.
    """
    _escape_what_the_terminal_lacks()
    if not argv or argv[0] in ("-h", "--help"):
        _say(usage())
        return FINE
    require_verb(argv[0])
    options = parser_of(argv[0]).parse(argv[1:])
    try:
        with _stops.noted(), _without_collector():
            return _RUN[argv[0]](argv[0], options)
    except Stopped:
        print(interrupted_text(argv, options), file=sys.stderr)
        return 128 + _stops.signal
    except BrokenPipeError:
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except MemoryError:
        raise ValueError(f"zeromuon ckpt {argv[0]}: out of memory; lower --max-memory or --threads") from None
    except ValueError as error:
        raise ValueError(printable(str(error))) from error


@contextlib.contextmanager
def _without_collector():
    """Dicts of hundreds of thousands of tensors are no garbage: looking for it among them takes as long as all else."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def usage() -> str:
    verbs = "\n".join(f"  {name:<18} {verb.purpose}" for name, verb in VERBS.items())
    return (
        f"usage: zeromuon ckpt VERB PATH [options]\n\nverbs:\n{verbs}\n\n"
        "PATH is a folder of ZeRO-3, universal, safetensors, pytorch_model.bin or DCP, or a file of safetensors or torch."
        "\nExit status: 0 fine, 1 verify found problems or diff differences, 2 bad options or input, 130 interrupted."
        "\n`zeromuon ckpt VERB --help` tells a verb's options."
    )


def require_verb(word: str) -> None:
    """Raises ValueError that names the nearest verb if `word` is not one."""
    if word in VERBS:
        return
    hint = did_you_mean(word, VERBS)
    raise ValueError(f'zeromuon ckpt {word}: expected a verb ({", ".join(VERBS)}), found "{word}"{hint}')


# ---- verbs ---------------------------------------------------------------------------------------


def _inspect(verb: str, options: Namespace) -> int:
    from .reading import inspect

    found = inspect(options.path, tag=options.tag)
    _print(options, found, lambda: inspect_text.inspect_text(found, options.all))
    return FINE


def _verify(verb: str, options: Namespace) -> int:
    from .reading import verify

    found, seconds = _timed(verb, verify, options)
    _print(options, found, lambda: report_text.verify_text(found, seconds, options.all))
    return FINE if found["ok"] else FOUND


def _diff(verb: str, options: Namespace) -> int:
    from .reading import diff

    tag = vars(options).pop("tag")
    found, _ = _timed(verb, diff, options, tag_a=options.tag_a or tag, tag_b=options.tag_b or tag)
    _print(options, found, lambda: report_text.diff_text(found))
    return FINE if found["same"] else FOUND


def _write(verb: str, options: Namespace, **changed) -> int:
    from . import writing

    written, seconds = _timed(verb, getattr(writing, verb.replace("-", "_")), options, **changed)
    _say(report_text.written_text(written, seconds), f"; {options.output} itself is complete")
    return FINE


def _export(verb: str, options: Namespace) -> int:
    dtypes: dict[str, str] = {}
    for pattern, dtype in options.dtype_for:
        dtypes.setdefault(pattern, dtype)
    return _write(verb, options, dtype_for=dtypes)


def _convert_optimizer(verb: str, options: Namespace) -> int:
    from .roles import read_roles

    given = vars(options)
    roles = read_roles(options.roles) if options.roles else None
    numbers = {name: value for name in NUMBERS if (value := given.pop(name)) is not None}
    return _write(verb, options, roles=roles, numbers=numbers)


_RUN = {
    "inspect": _inspect,
    "verify": _verify,
    "diff": _diff,
    "export": _export,
    "reshard": _write,
    "universal": _write,
    "convert-optimizer": _convert_optimizer,
}


def _timed(verb: str, function, options: Namespace, **changed):
    """What the function of the verb returns for the options, and the seconds that it took."""
    arguments = {name: value for name, value in vars(options).items() if name not in ("quiet", "json", "all")}
    started = time.monotonic()
    with _progress(verb, options.quiet) as progress:
        found = function(**{**arguments, **changed}, progress=progress)
    return found, time.monotonic() - started


def _print(options: Namespace, found: dict, text) -> None:
    _say(json.dumps(report_text.finite(found), indent=1, allow_nan=False) if options.json else text())


def _say(text: str, comfort: str = "") -> None:
    """Raises ValueError when stdout takes no more, with `comfort`; BrokenPipeError when nobody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_stdout()
        raise ValueError(
            f"standard output: expected to write the report there, got: {error.strerror}; send it elsewhere{comfort}"
        ) from None


def _drop_stdout() -> None:
    """What is left in its buffer goes nowhere, so that Python's end says nothing about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_what_the_terminal_lacks() -> None:
    """A name that the encoding of stdout cannot say is printed with backslashes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _progress(verb: str, quiet: bool):
    """What a verb tells its progress; the bar goes when the verb ends."""
    bar = None if quiet else ProgressBar(verb)

    def told(done: int, total: int) -> None:
        _stops.point()
        if bar:
            bar(done, total)

    try:
        yield told
    finally:
        if bar:
            bar.close()


# ---- being stopped -------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ctrl-C or SIGTERM was honoured."""


class _Stops:
    """Ctrl-C and SIGTERM are noted, and honoured where a verb tells its progress: threads are joined then, and unfinished
    files removed. A verb that has finished its work meanwhile says so. A second one ends the process at once.

    Thread: main (it handles signals).
    """

    def __init__(self):
        self.signal: int | None = None  # that came

    def point(self) -> None:
        if self.signal is not None:
            raise Stopped

    @contextlib.contextmanager
    def noted(self):
        self.signal = None
        # What is ignored (SIGINT of a job in the background) stays so.
        ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self._note) for s in ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


_stops = _Stops()


def interrupted_text(argv: list[str], options: Namespace) -> str:
    """What an interrupted verb has left, and how to go on."""
    output = getattr(options, "output", None)
    if output is None:
        return "interrupted; nothing was written"
    journals = [folder / JOURNAL for folder in (Path(output), *_below(Path(output)), Path(output).parent)]
    journal = next((path for path in journals if path.is_file()), None)
    if journal is None:
        return f"interrupted; no file was finished, {output} has what it had"
    finished = len(journal.read_text(errors="replace").splitlines()) - 1
    words = argv if options.resume else [*argv, "--resume"]
    return (
        f"interrupted; {finished} file{'s' if finished != 1 else ''} finished in {journal.parent}, the rest was"
        f" removed; go on with: {shlex.join(['zeromuon', 'ckpt', *words])}"
    )


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
