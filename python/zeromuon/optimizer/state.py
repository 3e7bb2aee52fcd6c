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

from ..base.entry import ENTRY, FORMAT, GROUP_VALUES, RATES_IN_GROUPS, check_entry
from ..base.warn import warn
from ..selection.rules import ParamSpec
from ..selection.table import without_numbers
from .options import OPTIONS, group_values

_RATES = ("lr", "initial_lr")  # of a group
# What a load says of an option that differs, by its Option.on_load.
_SAID = {
    "said": ", going on with {now}",
    "converted": "; its momentum is converted to {now}",
    "taken": ", this run says {now}; as in torch, what the checkpoint's parameter groups say is gone on with",
}


def save_entry(state_dict: dict, binding, options: dict) -> dict:
    """`state_dict` with the entry in it, see base/entry_schema.json: format version, what a reader must know, name -> role
    in the order of the shards, which of them hold several matrices, the hyper-parameters, the hash of how each matrix is computed, and the values of each
    group."""
    specs = [s for g in binding.sub_groups for s in g.specs]
    groups = state_dict["param_groups"]
    entry = {
        "format": FORMAT,
        "needs": [RATES_IN_GROUPS],
        "roles": {s.name: s.role for s in specs},
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "arithmetic": _arithmetic(binding.plan, options),
        "groups": [{k: _plain(group[k]) for k in GROUP_VALUES if k in group} for group in groups],
    }
    splits = {s.name: s.split.as_json() for s in specs if s.blocks}
    if splits:
        entry["splits"] = splits
    return {**state_dict, ENTRY: entry, "param_groups": [{**groups[0], ENTRY: entry}, *groups[1:]]}


def settle_groups(param_groups: list[dict], roles: list[str], entry: dict, options: dict) -> None:
    """After a native load, which has copied the saved groups: every group has all its values, each as itself."""
    for group, role, saved in zip(param_groups, roles, _saved_groups(entry, roles)):
        group.update({key: saved[key] for key in _RATES if key in saved})
        for name, value in group_values(role, options).items():
            group.setdefault(name, value)


def earlier_factors(entry: dict, roles: list[str]) -> list[float] | None:
    """What the learning rates of the groups are multiplied by: the first checkpoints have Muon's in AdamW's groups, beside
    the factor. None where that changes nothing."""
    if RATES_IN_GROUPS in entry.get("needs", ()):
        return None
    factors = [saved["adam_ratio"] if role == "adamw" else 1.0 for saved, role in zip(entry["groups"], roles)]
    return factors if any(factor != 1 for factor in factors) else None


def _saved_groups(entry: dict, roles: list[str]) -> list[dict]:
    """The values of each group, its own learning rate among them."""
    factors = earlier_factors(entry, roles)
    if factors is None:
        return entry["groups"]
    return [
        {**saved, **{key: saved[key] * factor for key in _RATES if key in saved}}
        for saved, factor in zip(entry["groups"], factors)
    ]


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
    _check_cut(state_dict, binding)
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


def _check_cut(state_dict: dict, binding) -> None:
    """Raises ValueError where the shards are others than those of this run: torch would say it in the midst of a load, or not
    at all where there are as many."""
    saved = [[_numel(state_dict["state"].get(index)) for index in g["params"]] for g in state_dict["param_groups"]]
    now = [[g.flat.numel() for g in binding.sub_groups if g.group == index] for index in range(len(saved))]
    same = all(
        len(there) == len(here) and all(a in (b, None) for a, b in zip(there, here)) for there, here in zip(saved, now)
    )
    if not same:
        counts = [sum(map(len, cut)) for cut in (saved, now)]
        raise ValueError(
            f"the checkpoint's parameters are cut into {counts[0]} flat shards a rank, this run's into {counts[1]}, of other "
            f"sizes: zero_optimization.sub_group_size has changed; set it as it was, or write the checkpoint anew: zeromuon "
            f"ckpt reshard CHECKPOINT -o FOLDER --world-size N --sub-group-size ELEMENTS"
        )


def _numel(state: dict | None) -> int | None:
    """Elements of a saved shard; None where it has no state yet."""
    return state["exp_avg"].numel() if state and "exp_avg" in state else None


def adopt_universal(state, param_groups, roles: list[str], binding, options: dict) -> dict | None:
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
    for group, role, saved in zip(param_groups, roles, _saved_groups(entry, roles)):
        group.pop(ENTRY, None)
        _restore_values(group, saved, entry["groups"][0], group_values(role, options))
    settle_states(state, binding)
    return entry


def _restore_values(group: dict, saved: dict, first: dict, options: dict) -> None:
    """The group's own saved values, in place of the first group's, which the load has written, and of the options, where the
    first group has no such value. One that was set after the load stays."""
    for key in GROUP_VALUES:
        if _plain(group.get(key)) != _plain(first.get(key, options.get(key))):
            continue
        if key in saved:
            group[key] = tuple(saved[key]) if isinstance(saved[key], list) else saved[key]
        elif key in first and key not in options:
            group.pop(key, None)


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
    specs = [s for g in binding.sub_groups for s in g.specs]
    _check_roles(entry["roles"], specs)
    _check_options(entry["options"], options)
    _warn_of_splits(entry, specs)
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


def _check_roles(saved: dict, specs: list[ParamSpec]) -> None:
    now = {s.name: s.role for s in specs}
    differing = [name for name in sorted(saved.keys() | now.keys()) if saved.get(name) != now.get(name)]
    stacks = [s.name for s in specs if s.split.stack and s.role == "muon" and saved.get(s.name) == "adamw"]
    if stacks:
        raise ValueError(
            f'"{stacks[0]}"{f" and {len(stacks) - 1} more" if len(stacks) > 1 else ""}: these stacks of experts were AdamW\'s '
            f"when the checkpoint was written, and Muon's in this run. Either leave them as they were, with exclude="
            f"{sorted({without_numbers(name) for name in stacks})}; or convert the checkpoint, whose exp_avg then become their "
            f"momenta: zeromuon ckpt convert-optimizer --to ZeroMuon --roles FILE, written by zeromuon.param_groups(model)"
            f".save(FILE)"
        )
    for name in differing:
        raise ValueError(
            f'parameter "{name}" is {saved.get(name, "absent")} in the checkpoint and {now.get(name, "absent")} in this run; '
            f"use the same model and the same include and exclude patterns"
        )


def _warn_of_splits(entry: dict, specs: list[ParamSpec]) -> None:
    """Of parameters whose matrices are other ones now. Without `splits` each was one, but in a conversion, which leaves that
    open."""
    if "splits" not in entry and entry.get("arithmetic") == "not recorded":
        return
    saved = entry.get("splits", {})
    one: dict = {}  # as_json() of a parameter that is one matrix
    differing = [
        s
        for s in specs
        if s.role == "muon"
        and saved.get(s.name, one) != (s.split.as_json() if s.blocks else one)
        and (s.name in saved or not s.split.stack)  # no stack was ever one matrix
    ]
    if differing:
        names = ", ".join(s.name for s in differing[:3]) + (
            f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        )
        warn(
            f"{names}: the checkpoint was written with other matrices in {'them' if len(differing) > 1 else 'it'}; the momentum "
            f"is taken as it is. To go on as before: split_fused=False, or splits={{pattern: ...}} as it was",
            stacklevel=5,
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
        if loaded is not None and (loaded.dtype != binding.momentum_dtype or binding.has_own_momentum):
            state[group.flat]["exp_avg"] = binding.new_momentum(group.flat).copy_(loaded)
