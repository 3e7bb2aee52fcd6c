"""What a checkpoint carries beside the state tensors, and how they look on disk.

DeepSpeed's converters name three states (exp_avg, exp_avg_sq, step), so the momentum is stored as
``exp_avg`` and Muon sub-groups get an ``exp_avg_sq`` of zeros made of one stored element.

Note [Universal checkpoints]
DeepSpeed loads its universal checkpoints past ``load_state_dict``: it writes dense states into
``optimizer.state`` and copies the first saved group's values into every group. So the entry below also rides in
the first saved group, and the dense ``exp_avg_sq`` of a Muon sub-group, which nothing else makes, tells that such a
load took place; :func:`adopt_universal` then does the checks and the rest of the load.
"""

from __future__ import annotations


import torch

from ..base.entry import ENTRY, FORMAT, GROUP_VALUES, check_entry
from ..base.warn import warn
from .options import OPTIONS

_GROUP_VALUES = tuple(key for key in GROUP_VALUES if key != "adam_ratio")  # those that a group has itself
# What a load says of an option that differs, by its Option.on_load.
_SAID = {
    "said": ", going on with {now}",
    "converted": "; its momentum is converted to {now}",
    "taken": ", this run says {now}; as in torch, the checkpoint's learning rates, their ratio and its decay are gone on "
    "with",
}


def save_entry(state_dict: dict, binding, options: dict, adam_ratios: list[float]) -> dict:
    """`state_dict` with the entry in it, see base/entry_schema.json: format version, what a reader must know, name -> role
    in the order of the shards, the hyper-parameters, the hash of how each matrix is computed, and the values of each
    group."""
    specs = [s for g in binding.sub_groups for s in g.specs]
    groups = state_dict["param_groups"]
    entry = {
        "format": FORMAT,
        "needs": [],
        "roles": {s.name: s.role for s in specs},
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "arithmetic": _arithmetic(binding.plan, options),
        "groups": [
            {**{k: group[k] for k in _GROUP_VALUES if k in group}, "adam_ratio": ratio}
            for group, ratio in zip(groups, adam_ratios)
        ],
    }
    return {**state_dict, ENTRY: entry, "param_groups": [{**groups[0], ENTRY: entry}, *groups[1:]]}


def saved_ratios(entry: dict, now: list[float]) -> list[float]:
    """adam_lr/lr of each group as saved, or `now` when the groups are others."""
    saved = [group["adam_ratio"] for group in entry["groups"]]
    return saved if len(saved) == len(now) else now


def load_entry(state_dict: dict, binding, options: dict, groups: int) -> dict:
    """`state_dict` without the entry, checked against this run. Raises ValueError; warns of other options."""
    entry = state_dict.get(ENTRY)
    if entry is None:
        raise ValueError(_foreign(state_dict))
    saved_groups = len(state_dict["param_groups"])
    if saved_groups != groups:
        raise ValueError(f"the checkpoint has {saved_groups} parameter groups, this run has {groups}")
    _check(entry, binding, options)
    _check_order(list(entry["roles"]), [s.name for g in binding.sub_groups for s in g.specs])
    packed = [{k: v for k, v in group.items() if k != ENTRY} for group in state_dict["param_groups"]]
    return {**{k: v for k, v in state_dict.items() if k != ENTRY}, "param_groups": packed}


def _check_order(saved: list[str], now: list[str]) -> None:
    """States of the native format go by position in the shards."""
    for before, after in zip(saved, now):
        if before != after:
            raise ValueError(
                f'the shards of the checkpoint hold "{before}" where this run has "{after}": the parameters are in '
                f"another order; build the model and its groups as they were, or load through the universal format"
            )


def adopt_universal(state, param_groups, binding, options: dict) -> dict | None:
    """Completes a universal load that DeepSpeed did since the last call, see Note [Universal checkpoints]; its entry,
    or None when there was no such load.

    Raises ValueError when another optimizer wrote that checkpoint, or the roles differ.
    """
    if not any("exp_avg_sq" in state.get(g.flat, ()) for g in binding.sub_groups if g.role == "muon"):
        return None
    entry = next((group[ENTRY] for group in param_groups if ENTRY in group), None)
    if entry is None:
        raise ValueError(_foreign({"state": {0: {"exp_avg", "exp_avg_sq"}}}))
    _check(entry, binding, options)
    for index, group in enumerate(param_groups):
        group.pop(ENTRY, None)
        _restore_values(group, index, entry["groups"])
    settle_states(state, binding)
    return entry


def _restore_values(group: dict, index: int, saved: list[dict]) -> None:
    """The group's own saved values, in place of the first group's; one that was set after the load stays."""
    for key in _GROUP_VALUES:
        if index < len(saved) and key in saved[index] and group.get(key) == saved[0].get(key):
            group[key] = saved[index][key]


def _foreign(state_dict: dict) -> str:
    keys = sorted({k for s in state_dict.get("state", {}).values() for k in s})
    if "momentum_buffer" in keys:
        whose = "DeepSpeed's own Muon wrote it; its momentum_buffer, sorted by size, must be converted to ZeroMuon's"
    elif {"exp_avg", "exp_avg_sq"} <= set(keys):
        whose = "an AdamW wrote it; converted from AdamW to Muon, exp_avg becomes the momentum of the hidden matrices"
    else:
        whose = f"its states are {keys or 'none'}"
    return (
        f"this optimizer state was not written by ZeroMuon: {whose}. Convert the checkpoint first (zeromuon ckpt "
        f"convert-optimizer --to ZeroMuon), or take only its weights: load_checkpoint(..., load_optimizer_states=False) "
        f"starts with fresh optimizer state"
    )


def _check(entry: dict, binding, options: dict) -> None:
    check_entry(entry)
    _check_roles(entry["roles"], {s.name: s.role for g in binding.sub_groups for s in g.specs})
    _check_options(entry["options"], options)
    _warn_of_arithmetic(entry, binding.plan, options)


def _check_options(saved: dict, options: dict) -> None:
    """Does with every option that differs what its row in the table says. One that the checkpoint lacks, as those of older
    versions and of conversions do, does not differ."""
    differing = [o for o in OPTIONS if _plain(saved.get(o.name, options[o.name])) != _plain(options[o.name])]
    for key in (o.name for o in differing if o.on_load == "refused"):
        raise ValueError(
            f'{key}: the checkpoint was written with "{saved[key]}", this run has "{options[key]}"; the stored '
            f"momentum has other units: set {key} as it was, or convert it: zeromuon ckpt convert-optimizer "
            f"--to ZeroMuon --{key.replace('_', '-')} {options[key]}"
        )
    for option in (o for o in differing if o.on_load in _SAID):
        text = _SAID[option.on_load].format(now=options[option.name])
        warn(f"{option.name}: the checkpoint was written with {saved[option.name]}{text}", stacklevel=5)


def _arithmetic(plan, options: dict) -> str:
    """What the bits of a step depend on, beside the options that are compared by name: equal ones give equal bits."""
    return plan.arithmetic_hash + (", cpu_kernels onednn" if options["cpu_kernels"] == "onednn" else "")


def _warn_of_arithmetic(entry: dict, plan, options: dict) -> None:
    saved, now = entry.get("arithmetic", "not recorded, in float32"), _arithmetic(plan, options)
    if saved != now:
        warn(
            f"the checkpoint was written where a step is computed in another way (arithmetic {saved}; here {now}): on "
            f"another kind of processor, or by another version, or with other options. The run goes on within the accuracy of "
            f"its data types, not bit for bit",
            stacklevel=5,
        )


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _check_roles(saved: dict, now: dict) -> None:
    if saved == now:
        return
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name, "absent"), now.get(name, "absent")
        if before != after:
            raise ValueError(
                f'parameter "{name}" is {before} in the checkpoint and {after} in this run; use the '
                f"same model and the same include and exclude patterns"
            )


def with_placeholders(state_dict: dict, sub_groups, param_groups) -> dict:
    """Adds the stored-as-one-element ``exp_avg_sq`` to the Muon entries of a packed state dict."""
    muon = {id(g.flat) for g in sub_groups if g.role == "muon"}
    index, packed = 0, dict(state_dict["state"])
    for group in param_groups:
        for flat in group["params"]:
            if index in packed and id(flat) in muon:
                zeros = torch.zeros((), dtype=torch.float32, device=flat.device).expand(flat.numel())
                packed[index] = {**packed[index], "exp_avg_sq": zeros}
            index += 1
    return {**state_dict, "state": packed}


def settle_states(state, binding) -> None:
    """After a load: undoes :func:`with_placeholders`, and puts momenta where this run keeps them and as it does. They are
    in the data type and on the device of the flat shard: torch casts every state to its parameter, and DeepSpeed's
    universal load writes float32."""
    for group in (g for g in binding.sub_groups if g.role == "muon" and g.flat in state):
        state[group.flat].pop("exp_avg_sq", None)
        loaded = state[group.flat].get("exp_avg")
        if loaded is not None and (loaded.dtype != binding.momentum_dtype or binding.momentum_on_device):
            state[group.flat]["exp_avg"] = binding.new_momentum(group.flat).copy_(loaded)
