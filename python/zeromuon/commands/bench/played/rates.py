"""The file of rates: what stands in it, and the checks. No torch.

Legend: a rate is a number and where it comes from; a machine names one for each of RATES; a case is a machine, and what is
played on it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .models import MODELS

FILE = "pipeline_rates.json"
# Of one rank. A latency may be 0.
LATENCIES = ("wire_latency_s", "task_latency_s")
RATES = (
    "dram_bytes_per_s",
    "to_device_bytes_per_s",
    "to_host_bytes_per_s",
    "flops_per_s",
    "wire_bytes_per_s",
    *LATENCIES,
)
HOMES, DTYPES = ("shard", "device", "streamed"), ("float32", "bfloat16")
_MOST_RANKS = 1024


@dataclass(frozen=True)
class Machine:
    """rates: RATES -> value. sources: RATES -> the line that says where it comes from."""

    name: str
    title: str
    rates: dict[str, float]
    sources: dict[str, str]


@dataclass(frozen=True)
class Case:
    """balanced: its machine is chosen such that the two largest resource times are within BALANCE of each other."""

    machine: Machine
    models: tuple[str, ...]
    homes: tuple[str, ...]
    momentum_dtypes: tuple[str, ...]
    balanced: bool


@dataclass(frozen=True)
class Rates:
    """What a file says."""

    path: Path
    world_size: int
    cases: tuple[Case, ...]


def load(path: Path) -> Rates:
    """Raises ValueError, with the file and the key, for what is missing, unknown, or not a value that can be."""
    try:
        content = json.loads(path.read_text(), object_pairs_hook=_Reader.without_twins)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file of rates") from None
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path}: expected JSON, {error}") from None
    return _Reader(path).rates_of(content)


class _Reader:
    """Reads one file; every error names it and the key."""

    def __init__(self, path: Path):
        self._path = path

    @staticmethod
    def without_twins(pairs: list[tuple]) -> dict:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f'the key "{twice}" stands twice in one object')
        return dict(pairs)

    def rates_of(self, content) -> Rates:
        self._keys("", content, ("world_size", "rates", "machines", "cases"))
        world = content["world_size"]
        if isinstance(world, bool) or not isinstance(world, int) or not 1 <= world <= _MOST_RANKS:
            self._fail("world_size", f"expected a whole number from 1 to {_MOST_RANKS}", world)
        rates = {
            name: self._rate(f"rates.{name}", rate) for name, rate in self._object("rates", content["rates"]).items()
        }
        machines = {
            name: self._machine(name, machine, rates)
            for name, machine in self._object("machines", content["machines"]).items()
        }
        if not isinstance(content["cases"], list) or not content["cases"]:
            self._fail("cases", "expected a list with one case at least", content["cases"])
        cases = tuple(self._case(f"cases[{i}]", case, machines) for i, case in enumerate(content["cases"]))
        return Rates(self._path, world, cases)

    def _rate(self, key: str, rate) -> tuple[float, str]:
        """Value and source."""
        self._object(key, rate)
        origin = "why" if "why" in rate else "source"
        self._keys(key, rate, ("value", origin))
        value = rate["value"]
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value < 0:
            self._fail(f"{key}.value", "expected a number that is not negative", value)
        return float(value), self._text(f"{key}.{origin}", rate[origin])

    def _machine(self, name: str, machine, rates: dict) -> Machine:
        key = f"machines.{name}"
        self._keys(key, machine, ("title", *RATES))
        found = {rate: rates[self._one_of(f"{key}.{rate}", machine[rate], rates)] for rate in RATES}
        for rate, (value, _) in found.items():
            if value == 0 and rate not in LATENCIES:
                self._fail(f"rates.{machine[rate]}.value", f"expected a positive number, {key}.{rate} is", value)
        return Machine(
            name,
            self._text(f"{key}.title", machine["title"]),
            {rate: value for rate, (value, _) in found.items()},
            {rate: source for rate, (_, source) in found.items()},
        )

    def _case(self, key: str, case, machines: dict) -> Case:
        self._keys(key, case, ("machine", "models", "homes", "momentum_dtypes", "balanced"))
        if not isinstance(case["balanced"], bool):
            self._fail(f"{key}.balanced", "expected true or false", case["balanced"])
        return Case(
            machines[self._one_of(f"{key}.machine", case["machine"], machines)],
            self._list_of(f"{key}.models", case["models"], MODELS),
            self._list_of(f"{key}.homes", case["homes"], HOMES),
            self._list_of(f"{key}.momentum_dtypes", case["momentum_dtypes"], DTYPES),
            case["balanced"],
        )

    # ---- values ----------------------------------------------------------------------------------------------

    def _object(self, key: str, value) -> dict:
        if not isinstance(value, dict) or not value:
            self._fail(key, "expected an object that is not empty", value)
        return value

    def _keys(self, key: str, value, expected: tuple[str, ...]) -> None:
        self._object(key, value)
        prefix = f"{key}." if key else ""
        for name in value:
            if name not in expected:
                raise ValueError(f"{self._path}: {prefix}{name}: unknown key; expected {', '.join(expected)}")
        for name in expected:
            if name not in value:
                raise ValueError(f"{self._path}: {prefix}{name}: missing; expected {', '.join(expected)}")

    def _text(self, key: str, value) -> str:
        if not isinstance(value, str) or not value.strip():
            self._fail(key, "expected words", value)
        return value

    def _one_of(self, key: str, value, known) -> str:
        if not isinstance(value, str) or value not in known:
            self._fail(key, f"expected one of {', '.join(known)}", value)
        return value

    def _list_of(self, key: str, value, known) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            self._fail(key, f"expected a list of {', '.join(known)}", value)
        return tuple(dict.fromkeys(self._one_of(f"{key}[{i}]", item, known) for i, item in enumerate(value)))

    def _fail(self, key: str, expected: str, got):
        raise ValueError(f"{self._path}: {key or 'the whole file'}: {expected}, got {json.dumps(got)}")
