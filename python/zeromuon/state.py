"""What a checkpoint carries beside the state tensors, and how they look on disk.

DeepSpeed's converters name three states (exp_avg, exp_avg_sq, step), so the momentum is stored as
``exp_avg`` and Muon sub-groups get an ``exp_avg_sq`` of zeros made of one stored element.
"""

from __future__ import annotations

import warnings

import torch

FORMAT = 1
# Options that change what the stored momentum means.
_MEANING = ("momentum_kind",)
# Options that change the arithmetic: going on with others is allowed, and said.
_COMPARED = ("momentum", "nesterov", "scale", "ns", "ns_form", "betas", "eps")


def save_entry(binding, options: dict) -> dict:
    """Format version, name -> role, 2-D views of the Muon parameters, and the hyper-parameters."""
    specs = [s for g in binding.sub_groups for s in g.specs]
    return {
        "format": FORMAT,
        "roles": {s.name: s.role for s in specs},
        "blocks": {s.name: [[0, s.rows, 0, s.cols]] for s in specs if s.role == "muon"},
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "plan_hash": binding.plan.hash,
    }


def load_entry(state_dict: dict, binding, options: dict, groups: int) -> None:
    """Checks that a state dict fits this optimizer. Raises ValueError; warns of other options."""
    entry = state_dict.get("zeromuon")
    if entry is None:
        keys = sorted({k for s in state_dict.get("state", {}).values() for k in s})
        raise ValueError(
            f"this optimizer state was not written by ZeroMuon (its states are {keys or 'none'}): an "
            f"AdamW or DeepSpeed-Muon checkpoint must be converted first; to start with fresh "
            f"optimizer state, load with load_optimizer_states=False"
        )
    if entry["format"] != FORMAT:
        raise ValueError(f"ZeroMuon state has format {entry['format']}, this version reads {FORMAT}")
    saved_groups = len(state_dict["param_groups"])
    if saved_groups != groups:
        raise ValueError(f"the checkpoint has {saved_groups} parameter groups, this run has {groups}")
    _check_roles(entry["roles"], {s.name: s.role for g in binding.sub_groups for s in g.specs})
    for key in _MEANING:
        if entry["options"][key] != options[key]:
            raise ValueError(
                f'{key}: the checkpoint was written with "{entry["options"][key]}", this run has '
                f'"{options[key]}"; the stored momentum has other units: set {key} as it was'
            )
    for key in _COMPARED:
        saved, now = entry["options"][key], options[key]
        if _plain(saved) != _plain(now):
            warnings.warn(f"{key}: the checkpoint was written with {saved}, going on with {now}",
                          stacklevel=3)


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
                zeros = torch.zeros((), device=flat.device).expand(flat.numel())
                packed[index] = {**packed[index], "exp_avg_sq": zeros}
            index += 1
    return {**state_dict, "state": packed}


def drop_placeholders(state, sub_groups) -> None:
    """Undoes :func:`with_placeholders` after a load."""
    for group in sub_groups:
        if group.role == "muon" and group.flat in state:
            state[group.flat].pop("exp_avg_sq", None)
