"""Reads the parameters of DeepSpeed's own ``"type": "Muon"`` with DeepSpeed's meaning and defaults."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from ..base.words import nearest

# DeepSpeed's defaults (runtime/zero/muon/original_muon.py), for what the config leaves out.
_MUON_LR, _ADAM_LR, _METHOD = 0.02, 3e-4, "gram"
_DEFAULTS = {"momentum": 0.95, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-10}
# DeepSpeed's Newton-Schulz methods -> ns_form. Its "gram" takes the standard form for square matrices.
_FORMS = {"gram": "auto", "standard": "standard"}
_SWITCHES = ("torch_adam", "adam_w_mode", "fp32_optimizer_states", "foreach", "per_head_muon")
KEYS = ("lr", "muon_lr", "adam_lr", *_DEFAULTS, "ns_method", *_SWITCHES)
# Not DeepSpeed's: which parameters get Muon, and which matrices they hold, as in param_groups.
SELECTION_KEYS = ("include", "exclude", "splits", "split_fused", "per_head")


@dataclass(frozen=True)
class MuonSettings:
    """options: keywords of ZeroMuon. decoupled_decay: AdamW rather than Adam with L2 regularisation."""

    options: dict
    decoupled_decay: bool


def read_muon_params(params: dict, ours: tuple[str, ...] = ()) -> MuonSettings:
    """Settings from the ``params`` of ``"type": "Muon"`` (:data:`KEYS`). ours: options of ZeroMuon that it takes, too.

    lr goes for both roles, muon_lr and adam_lr before it. torch_adam and foreach choose between DeepSpeed's own
    implementations of the same AdamW and have nothing to choose here.

    per_head_muon is no setting of the optimizer: see :func:`read_selection`.

    Raises ValueError for an unknown key, a switch that is no boolean, and an unknown ns_method.
    """
    _check_keys(params, (*KEYS, *SELECTION_KEYS, *ours))
    for key in _SWITCHES:
        if not isinstance(params.get(key), (bool, type(None))):
            raise ValueError(f'"type": "Muon": {key}: got {params[key]!r}, expected true or false')
    if params.get("fp32_optimizer_states") is False:
        warnings.warn(
            '"type": "Muon": fp32_optimizer_states: false has no effect: zeromuon keeps its states in '
            'float32, 4 bytes per Muon parameter ("momentum_dtype": "bfloat16": 2) and 8 per AdamW parameter',
            stacklevel=3,
        )
    method = params.get("ns_method", _METHOD)
    if method not in _FORMS:
        raise ValueError(f'"type": "Muon": ns_method: got {method!r}, expected {" or ".join(_FORMS)}')
    options = {
        "lr": params.get("muon_lr", params.get("lr", _MUON_LR)),
        "adam_lr": params.get("adam_lr", params.get("lr", _ADAM_LR)),
        **{key: params.get(key, default) for key, default in _DEFAULTS.items()},
        "scale": "original",
        "ns": "jordan",
        "ns_form": _FORMS[method],
        **{key: params[key] for key in ours if key in params},
    }
    return MuonSettings(options, params.get("adam_w_mode", True) is not False)


def read_selection(params: dict) -> dict:
    """Keywords of :func:`zeromuon.param_groups` from the ``params`` of ``"type": "Muon"``: whole matrices, or the heads that
    DeepSpeed's per_head_muon splits, unless they say otherwise.

    Raises ValueError where per_head and per_head_muon are both given.
    """
    if "per_head" in params and params.get("per_head_muon") is not None:
        raise ValueError('"type": "Muon": per_head and per_head_muon say the same; leave one out')
    per_head = "qkv" if params.get("per_head_muon") else "none"
    return {"split_fused": False, "per_head": per_head, **{key: params[key] for key in SELECTION_KEYS if key in params}}


def _check_keys(params: dict, known: tuple[str, ...]) -> None:
    for key in params:
        if key not in known:
            found = nearest(key.lower(), known, cutoff=0.5)
            hint = f"did you mean {found}?" if found else f"the keys are {', '.join(known)}"
            raise ValueError(f'"type": "Muon": {key}: unknown key, {hint}')
