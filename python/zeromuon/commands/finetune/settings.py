"""What one run is asked to do: plain data, written to the run folder, read by every rank."""

from __future__ import annotations

import json
from collections.abc import ItemsView
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...base import durable


# Of a field in JSON, by its annotation.
_TYPES = {"str": (str,), "int": (int,), "bool": (bool,), "str | None": (str, type(None)), "tuple[str, ...]": (list,)}


@dataclass(frozen=True)
class Settings:
    """One run. `model` and `data` are absolute paths (`data` may be the name of the demo's text)."""

    model: str
    data: str
    config: str
    ranks: int
    steps: int = 100
    save_every: int = 20  # steps
    keep_checkpoints: int = 2
    batch: int = 8  # sequences per rank and micro-batch
    seq_len: int = 64  # tokens
    seed: int = 0
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    verify: bool = False
    demo: bool = False
    trace: str | None = None  # absolute path of the trace file to write

    def save(self, path: Path) -> None:
        durable.write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "Settings":
        """Raises ValueError if the file is not one that `save` wrote."""
        known = {field.name: _TYPES[field.type] for field in fields(Settings)}
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("no object")
            given = {name: value for name, value in values.items() if name in known}
            for name, value in given.items():
                if type(value) not in known[name]:
                    raise ValueError(f"{name} {value!r}")
            given["overrides"] = tuple(given["overrides"])
            if not all(isinstance(override, str) for override in given["overrides"]):
                raise ValueError(f"overrides {given['overrides']!r}")
            return Settings(**given)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected the settings of a run, found {error}; put it right, or start a new run"
            ) from error

    def differences(self, given: dict) -> list[str]:
        """Sentences for each option in `given` (name -> value as asked now) that this run was not started with.

        Of `overrides` those given need only be among the run's; of one key the last counts.
        """
        return [
            f"{name} is {getattr(self, name)} there and {value} here"
            for name, value in given.items()
            if not (_last(value) <= _last(self.overrides) if name == "overrides" else getattr(self, name) == value)
        ]

    @property
    def model_name(self) -> str:
        """A short name of the model: its folder's, or the one above where that is only "model"."""
        path = Path(self.model)
        return path.parent.name if path.name == "model" else path.name


def _last(overrides: tuple[str, ...]) -> ItemsView[str, str]:
    """(key, value) of each key."""
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}.items()
