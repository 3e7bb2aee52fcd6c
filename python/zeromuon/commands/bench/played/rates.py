"""The file of rates: what stands in it, and the checks. No torch.

Legend: a rate is a number and where it comes from; a machine names one for each of RATES; a case is a machine, and what is
played on it: a scenario for each of its models, homes and types.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ....optimizer.options import FLOATS, MOMENTUM_HOMES
from .models import MODELS, Model

FILE = "pipeline_rates.json"
# Of one rank. A latency may be 0.
SPEEDS = (
    "dram_bytes_per_s",
    "to_device_bytes_per_s",
    "to_host_bytes_per_s",
    "flops_per_s",
    "device_bytes_per_s",
    "wire_bytes_per_s",
)
LATENCIES = ("wire_latency_s", "task_latency_s", "launch_s")
RATES = (*SPEEDS, *LATENCIES)
HOMES = tuple(MOMENTUM_HOMES.values())
_MOST_RANKS = 1024


@dataclass(frozen=True)
class Machine:
    """rates: RATES -> value. sources: RATES -> the line that says where it comes from."""

    name: str
    title: str
    rates: dict[str, float]
    sources: dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A model on a machine. home: where the momentum is computed and lies. balanced: the machine is chosen such that the two
    largest resource times are within BALANCE of each other."""

    model: Model
    machine: Machine
    home: str
    momentum_dtype: str
    world_size: int
    balanced: bool

    @property
    def key(self) -> str:
        return f"{self.model.key}/{self.machine.name}/{self.home}-{self.momentum_dtype}"


@dataclass(frozen=True)
class Rates:
    """What a file says."""

    path: Path
    world_size: int
    scenarios: tuple[Scenario, ...]


def load(path: Path) -> Rates:
    """Raises ValueError, with the file and the key, for what is missing, unknown, or not a value that can be."""
    try:
        content = json.loads(path.read_text(), object_pairs_hook=_without_twins)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file of rates") from None
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path}: expected JSON, {error}") from None
    return _rates(_Value(path, "", content))


def _without_twins(pairs: list[tuple]) -> dict:
    twice = _twice(key for key, _ in pairs)
    if twice is not None:
        raise ValueError(f'the key "{twice}" stands twice in one object')
    return dict(pairs)


def _twice(keys: Iterable[str]) -> str | None:
    """One that is there more than once."""
    return next((key for key, count in Counter(keys).items() if count > 1), None)


def _rates(file: _Value) -> Rates:
    world, known, machines, cases = file.members("world_size", "rates", "machines", "cases")
    whole = type(world.value) is int and 1 <= world.value <= _MOST_RANKS  # a bool is none
    world.require(whole, f"expected a whole number from 1 to {_MOST_RANKS}")
    known = {name: _rate(rate) for name, rate in known.each().items()}
    machines = {name: _machine(name, machine, known) for name, machine in machines.each().items()}
    found = [s for case in cases.items("with one case at least") for s in _scenarios(case, machines, world.value)]
    twice = _twice(s.key for s in found)
    if twice is not None:
        advice = "leave it out of one, or give a machine another name"
        raise ValueError(f"{file.path}: cases: {twice} is in two of them; {advice}")
    return Rates(file.path, world.value, tuple(found))


def _rate(rate: _Value) -> tuple[float, str]:
    """Value and source."""
    origin = "why" if "why" in rate.each() else "source"
    value, source = rate.members("value", origin)
    number = type(value.value) in (int, float) and math.isfinite(value.value)
    value.require(number and value.value >= 0, "expected a number that is not negative")
    return float(value.value), source.words()


def _machine(name: str, machine: _Value, known: dict) -> Machine:
    title, *named = machine.members("title", *RATES)
    found = {key: known[one.one_of(known)] for key, one in zip(RATES, named)}
    for one, (key, (value, _)) in zip(named, found.items()):
        positive = _Value(machine.path, f"rates.{one.value}.value", value)
        positive.require(value > 0 or key in LATENCIES, f"expected a positive number, {one.key} is")
    values, sources = ({key: pair[i] for key, pair in found.items()} for i in (0, 1))
    return Machine(name, title.words(), values, sources)


def _scenarios(case: _Value, machines: dict, world_size: int) -> list[Scenario]:
    machine, models, homes, dtypes, balanced = case.members("machine", "models", "homes", "momentum_dtypes", "balanced")
    balanced.require(isinstance(balanced.value, bool), "expected true or false")
    choices = product(models.some_of(MODELS), homes.some_of(HOMES), dtypes.some_of(FLOATS))
    machine = machines[machine.one_of(machines)]
    return [Scenario(MODELS[model], machine, home, dtype, world_size, balanced.value) for model, home, dtype in choices]


@dataclass(frozen=True)
class _Value:
    """A value of the file; every error names the file and the key."""

    path: Path
    key: str
    value: object

    def require(self, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"{self.path}: {self.key or 'the whole file'}: {expected}, got {json.dumps(self.value)}")

    def each(self) -> dict[str, _Value]:
        """Of an object that is not empty."""
        self.require(isinstance(self.value, dict) and bool(self.value), "expected an object that is not empty")
        prefix = f"{self.key}." if self.key else ""
        return {name: _Value(self.path, prefix + name, value) for name, value in self.value.items()}

    def members(self, *names: str) -> list[_Value]:
        """Of an object with these keys and no other."""
        found, prefix = self.each(), f"{self.key}." if self.key else ""
        for name in [*found, *names]:
            if name not in found or name not in names:
                why = "unknown key" if name in found else "missing"
                raise ValueError(f"{self.path}: {prefix}{name}: {why}; expected {', '.join(names)}")
        return [found[name] for name in names]

    def items(self, what: str) -> list[_Value]:
        """Of a list that is not empty. what: it is to hold."""
        self.require(isinstance(self.value, list) and bool(self.value), f"expected a list {what}")
        return [_Value(self.path, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def words(self) -> str:
        self.require(isinstance(self.value, str) and bool(self.value.strip()), "expected words")
        return self.value

    def one_of(self, known) -> str:
        self.require(isinstance(self.value, str) and self.value in known, f"expected one of {', '.join(known)}")
        return self.value

    def some_of(self, known) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.one_of(known) for item in self.items(f"of {', '.join(known)}")))
