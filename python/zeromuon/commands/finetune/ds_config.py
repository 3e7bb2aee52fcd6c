"""The DeepSpeed configuration of a run: read, overridden by --set, checked, and its "auto" values filled in."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path

from .settings import Settings

WARM_UP_PARTS = 10  # one step in ten warms up


def read_config(path: Path) -> dict:
    """The JSON object in `path`. Raises ValueError if it is missing or not a JSON object."""
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"--config {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ValueError(f"--config {path}: expected JSON, found {error}; correct the file") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path}: expected a JSON object, found {type(config).__name__}; correct the file")
    return config


def override(config: dict, assignments: tuple[str, ...]) -> dict:
    """A copy of `config` with each "a.b.c=VALUE" applied; VALUE is JSON, or text where it is not.

    Raises ValueError for an assignment without "=", or one whose path runs through a value that is not an object.
    """
    result = copy.deepcopy(config)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {assignment}: expected KEY=VALUE, for example optimizer.params.lr=0.001")
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        _assign(result, key.split("."), value, assignment)
    return result


def _assign(config: dict, path: list[str], value, assignment: str) -> None:
    for part in path[:-1]:
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise ValueError(f"--set {assignment}: {part} is {config!r} in the configuration, expected an object there")
    config[path[-1]] = value


def check_config(config: dict, whose: str) -> None:
    """Refuses what `finetune` cannot run: another stage than 3, no optimizer, a learning rate that is not a positive number.

    whose: the file's name, for the message. Raises ValueError.
    """
    for section in (
        "zero_optimization",
        "optimizer",
        "optimizer.params",
        "scheduler",
        "scheduler.params",
        "bf16",
        "fp16",
    ):
        _section(config, section, whose)
    accumulation = config.get("gradient_accumulation_steps", 1)
    if accumulation != "auto" and (type(accumulation) is not int or accumulation < 1):
        raise ValueError(f"{whose}: gradient_accumulation_steps is {accumulation!r}, expected a number from 1 on")
    stage = _section(config, "zero_optimization", whose).get("stage", 0)
    if stage != 3:
        raise ValueError(
            f"{whose}: zero_optimization.stage is {json.dumps(stage)}, expected 3; ZeroMuon works on ZeRO-3's shards:"
            " set it to 3, or use DeepSpeed's own Muon below stage 3"
        )
    optimizer = config.get("optimizer", {})
    if not isinstance(optimizer.get("type", ""), str):
        raise ValueError(f'{whose}: optimizer.type is {json.dumps(optimizer["type"])}, expected the text "ZeroMuon"')
    if "type" not in optimizer:
        raise ValueError(f'{whose}: expected an optimizer, found none; add {{"optimizer": {{"type": "ZeroMuon"}}}}')
    if optimizer["type"].lower() == "zeromuon" and optimizer["type"] != "ZeroMuon":
        raise ValueError(f'{whose}: optimizer type is "{optimizer["type"]}", expected "ZeroMuon" (capital Z and M)')
    lr = optimizer.get("params", {}).get("lr", 1e-3)
    if not isinstance(lr, (int, float)) or isinstance(lr, bool) or not 0 <= lr < math.inf:
        raise ValueError(f"{whose}: optimizer.params.lr is {lr!r}, expected a number that is not negative")


def differing_keys(a: dict, b: dict, path: str = "") -> list[str]:
    """Paths, as "a.b.c", of the values that two configurations do not share."""
    found = []
    for key in sorted({*a, *b}):
        where = f"{path}.{key}" if path else key
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            found += differing_keys(a[key], b[key], where)
        elif key not in a or key not in b or a[key] != b[key]:
            found.append(where)
    return found


def _section(config: dict, path: str, whose: str) -> dict:
    """The object at `path`; {} where there is none. Raises ValueError where something else is there."""
    for part in path.split("."):
        config = config.get(part, {})
        if not isinstance(config, dict):
            raise ValueError(f"{whose}: {path} is {json.dumps(config)}, expected an object")
    return config


def fill_auto(config: dict, settings: Settings, bf16: bool) -> dict:
    """A copy without "auto": batch sizes, the scheduler's steps and rates, bf16.

    bf16: whether the machine computes in it. Raises ValueError for an "auto" that this command has no value for, and for a
    batch size that contradicts --batch.
    """
    filled = copy.deepcopy(config)
    accumulation = filled.get("gradient_accumulation_steps", 1)
    filled["gradient_accumulation_steps"] = 1 if accumulation == "auto" else accumulation
    _set_or_agree(filled, "train_micro_batch_size_per_gpu", settings.batch)
    _set_or_agree(filled, "train_batch_size", settings.batch * settings.ranks * filled["gradient_accumulation_steps"])
    if filled.get("bf16", {}).get("enabled") == "auto":
        filled["bf16"]["enabled"] = bf16
    _fill_scheduler(filled, settings)
    _refuse_auto(filled, settings.config)
    return filled


def _set_or_agree(config: dict, key: str, value: int) -> None:
    known = config.setdefault(key, "auto")
    if known not in ("auto", value):
        raise ValueError(f'{key} is {known} in the configuration and {value} by --batch and --ranks; set it to "auto"')
    config[key] = value


def _fill_scheduler(config: dict, settings: Settings) -> None:
    peak = config["optimizer"].get("params", {}).get("lr", 1e-3)
    warm_up = max(2, settings.steps // WARM_UP_PARTS)
    values = {
        "warmup_max_lr": peak,
        "warmup_min_lr": peak / warm_up,
        "warmup_num_steps": warm_up,
        "total_num_steps": settings.steps,
    }
    params = config.get("scheduler", {}).get("params", {})
    params.update({key: value for key, value in values.items() if params.get(key) == "auto"})


def _refuse_auto(config: dict, whose: str, path: str = "") -> None:
    for key, value in config.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            _refuse_auto(value, whose, where)
        elif value == "auto":
            raise ValueError(f'{whose}: {where} is "auto", for which this command has no value; give a number')
