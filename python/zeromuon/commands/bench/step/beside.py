"""`zeromuon bench step --beside TREE`: ZeroMuon of this tree and of another one, step by step in turns. No torch.

Each tree has ranks of its own, which wait while the other's step; both step the same contenders, model and gradients.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ....ranks.launch import Launch
from ..core.results import OURS, PEER, Case, rows_of
from ..core.timing import Contender, Samples, measure
from .contenders import OURS as CONTENDERS
from .contenders import Size
from .launch import environment
from .tables import BESIDE

THIS_TREE = Path(__file__).resolve().parents[5]
_POLL_SECONDS = 0.02
_LOG_CHARACTERS = 300


def checked_tree(prog: str, text: str) -> Path:
    """The folder of a checkout. Raises ValueError unless it is one whose modules are built."""
    tree = Path(text).absolute()
    package = tree / "python" / "zeromuon"
    if not (package / "__init__.py").is_file():
        raise ValueError(
            f"{prog} --beside: expected the folder of a checkout of zeromuon, {tree} has no python/zeromuon/__init__.py;"
            " name another"
        )
    if not any((package / f"_core{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        raise ValueError(
            f"{prog} --beside: expected built modules, {package} has no _core{importlib.machinery.EXTENSION_SUFFIXES[0]};"
            " build that tree for this Python first (./run build there)"
        )
    return tree


class Tree(Launch):
    """The ranks of one tree. end: time.monotonic() after which a step is no longer waited for. Thread: main."""

    def __init__(self, tree: Path, size: Size, ranks: int, log: Path, end: float):
        self._python, self._end, self._heard = tree / "python", end, []
        self._folder_of_pipe = tempfile.TemporaryDirectory(prefix="zeromuon-turns-")
        pipe = Path(self._folder_of_pipe.name) / "turns"
        os.mkfifo(pipe)
        self._turns = os.open(pipe, os.O_RDWR)  # it waits for no reader
        script, given = Path(__file__).with_name("beside_ranks.py"), {"ranks": ranks, "log": log}
        variables = {**environment(ranks), "PYTHONPATH": str(self._python)}
        super().__init__(script, size.width, size.layers, pipe, *CONTENDERS, environment=variables, **given)

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        os.close(self._turns)
        self._folder_of_pipe.cleanup()

    def ready(self) -> None:
        """Waits until the engines are there. Raises RuntimeError when they are of another package than this tree's."""
        found, expected = Path(self._answer("package")), (self._python / "zeromuon").resolve()
        if found != expected:
            raise RuntimeError(f"the ranks imported {found}, expected {expected}")

    def step(self, number: int) -> float:
        """Seconds of a step of a contender. Raises RuntimeError when the ranks do not come back."""
        os.write(self._turns, f"{number}\n".encode())
        return self._answer("seconds")

    def weights(self) -> list[str]:
        """Ends the ranks. -> of each contender, sha256 of its weights."""
        os.write(self._turns, b"-1\n")
        weights = self._answer("weights")
        self.wait(max(0.0, self._end - time.monotonic()))
        return weights

    def _answer(self, what: str):
        status = None
        while not self._heard and status is None and time.monotonic() < self._end:
            status = self.wait(_POLL_SECONDS)
            self._heard += self.told()
        if not self._heard:
            tail = self.tail(_LOG_CHARACTERS)
            raise RuntimeError("no time is left" if status is None else f"the ranks ended with status {status}: {tail}")
        return self._heard.pop(0)[what]


@dataclass
class Pair:
    """This tree beside another one. longest: seconds for all. weights: of each tree, once the steps are done."""

    other: Path
    size: Size
    ranks: int
    log: Path
    longest: float
    weights: list[list[str]] | None = None
    stepped: float = 0.0  # seconds that steps took, of both trees

    def measure(self, seconds: float, samples: Samples, on_round) -> None:
        """Fills the samples. seconds: that all steps may take, about."""
        end, paths = time.monotonic() + self.longest, (THIS_TREE, self.other)
        with contextlib.ExitStack() as running:
            trees = [running.enter_context(Tree(path, self.size, self.ranks, self.log, end)) for path in paths]
            for tree, names in zip(trees, zip(*self.names())):
                try:
                    tree.ready()
                except RuntimeError as error:
                    samples.failed |= dict.fromkeys(names, str(error))
                    return
            contenders = [
                Contender(name, self._stepping(tree, number))
                for number, names in enumerate(self.names())
                for tree, name in zip(trees, names)
            ]
            measure(contenders, seconds, on_round, lambda: self.stepped, samples)
            if not samples.failed:
                self.weights = [tree.weights() for tree in trees]

    def _stepping(self, tree: Tree, number: int):
        def step(_) -> None:
            self.stepped += tree.step(number)

        return step

    def names(self) -> list[tuple[str, str]]:
        """Of each contender: of this tree, and of the other."""
        return [(name, f"{name}, {self.other}") for name in CONTENDERS]

    def cases(self, samples: Samples) -> list[Case]:
        """One per contender, with the rounds that are whole."""
        rounds = min(map(len, samples.seconds.values()), default=0)
        seconds = {name: taken[:rounds] for name, taken in samples.seconds.items() if rounds}
        whole = Samples(seconds, failed=samples.failed)
        cases = []
        for number, names in enumerate(self.names()):
            known = [(name, kind) for name, kind in zip(names, (OURS, PEER)) if name in seconds or name in whole.failed]
            rows = rows_of([Contender(name, print, kind=kind) for name, kind in known], whole)
            title = f"engine.step() of two trees, {self.size.key}, {CONTENDERS[number].rpartition(', ')[2]}"
            key = f"{self.size.key}, {CONTENDERS[number]}"
            cases.append(Case(BESIDE, key, title, "", rows, [self._same_words(number)]))
        return [case for case in cases if case.rows]

    def _same_words(self, number: int) -> str:
        if self.weights is None:
            return "the weights were not compared"
        ours, theirs = (weights[number] for weights in self.weights)
        words = "are the same, bit for bit" if ours == theirs else "DIFFER"
        return f"the weights of both trees after all steps {words}"
