"""Learning rates that a scheduler of the DeepSpeed config writes.

Such a scheduler is told one number and writes it to all parameter groups. Where AdamW has a rate of its own, the number is
told it as a list, one value for each group: then what stands in a group is its rate, whoever wrote it. A list in the config
is taken as it is. Schedulers that multiply what stands in the groups keep the ratio by themselves.
"""

from __future__ import annotations

import contextlib
import inspect

from ..base.warn import warn

# Scheduler -> its parameters that are written to all groups, the highest rate last.
_SPREAD: dict[str | None, tuple[str, ...]] = {
    "WarmupLR": ("warmup_min_lr", "warmup_max_lr"),
    "WarmupDecayLR": ("warmup_min_lr", "warmup_max_lr"),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "LRRangeTest": ("lr_range_test_min_lr",),
}


def build_scheduler(engine, optimizer, build):
    """What `build` builds from the engine's config, which says each rate once for all groups, or once for each; None where the
    config names none. optimizer: a ZeroMuon. Rank 0 prints the rates.

    Raises ValueError for a list that has not one value for each group.
    """
    name, told = engine.scheduler_name(), engine.scheduler_params() or {}
    spread = _spread(name, told, optimizer)
    with _params(engine, {**told, **spread} if spread else engine.scheduler_params()):
        scheduler = build()
    if engine.global_rank == 0:
        _say(optimizer, name, told, spread)
    return scheduler


def _spread(name: str | None, told: dict, optimizer) -> dict:
    """The rates of `told`, or of the scheduler's own defaults, one for each parameter group."""
    factors, spread = optimizer.lr_factors, {}
    for key in _SPREAD.get(name, ()):
        value = told.get(key, _default(name, key))
        if isinstance(value, (list, tuple)):
            if len(value) != len(factors):
                raise ValueError(
                    f'scheduler {name}: "{key}" has {len(value)} values, expected one number, or one for each of the '
                    f"{len(factors)} parameter groups: each that was given is split by role, Muon first"
                )
            spread[key] = list(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            spread[key] = [value * factor for factor in factors]
        elif value is not None:
            raise ValueError(
                f'scheduler {name}: "{key}" is {value!r}, expected a number, or one for each parameter group'
            )
    return spread


def _default(name: str, key: str):
    """None where the scheduler has none."""
    from deepspeed.runtime import lr_schedules

    default = inspect.signature(getattr(lr_schedules, name)).parameters[key].default
    return None if default is inspect.Parameter.empty else default


@contextlib.contextmanager
def _params(engine, params):
    """`params` as the scheduler's in the engine's config, for a while."""
    config = engine._config
    before, config.scheduler_params = config.scheduler_params, params
    try:
        yield
    finally:
        config.scheduler_params = before


def _say(optimizer, name: str | None, told: dict, spread: dict) -> None:
    """Prints the rates of both roles, at their highest; warns where the scheduler's number is another than the optimizer's,
    which then counts for nothing."""
    if not spread:
        rates = _by_role(optimizer, [group["lr"] for group in optimizer.param_groups])
        print(f"zeromuon: learning rates: {rates}{f', times {name}' if name else ''}", flush=True)
        return
    key = _SPREAD[name][-1]
    rates = _by_role(optimizer, spread[key])
    print(f"zeromuon: learning rates: {rates}, {name}'s {key}", flush=True)
    number, lr = told.get(key, _default(name, key)), optimizer.defaults["lr"]
    if not isinstance(number, (list, tuple)) and number != lr:
        warn(
            f"{name}: {key} {number:g} of the scheduler section takes the place of lr {lr:g} of the optimizer section "
            f"({rates}); write the rate that you want in both"
        )


def _by_role(optimizer, rates: list[float]) -> str:
    roles = {"muon": "Muon", "adamw": "AdamW"}
    pairs = dict.fromkeys(f"{roles[role]} {rate:g}" for role, rate in zip(optimizer.group_roles, rates))
    return ", ".join(sorted(pairs, reverse=True))
