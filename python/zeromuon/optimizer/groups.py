"""The parameter groups that a ZeroMuon is built from: what they may say, and the roles of their parameters."""

from __future__ import annotations

from ..selection.model import true_shape
from ..selection.rules import ParamSpec
from .checks import nearest_name
from .options import check_value, group_option_names

# What a parameter group may say. "specs" and "role" come from param_groups, "name" is the user's own.
_GROUP_KEYS = ("params", "specs", "role", "name", *group_option_names())


def check_keys(group: dict, index: int) -> None:
    """Raises ValueError for a key that no group has, or a value out of range. index: of the group, as given."""
    unknown = [key for key in group if key not in _GROUP_KEYS]
    if unknown:
        nearest = nearest_name(unknown[0], _GROUP_KEYS)
        raise ValueError(
            f"parameter group {index}: unknown key {unknown[0]!r}, expected {', '.join(_GROUP_KEYS)}"
            + (f"; did you mean {nearest!r}?" if nearest else "")
            + "; other hyper-parameters are arguments of ZeroMuon and hold for all groups"
        )
    for key in group_option_names():
        if key in group:
            check_value(key, group[key], f"parameter group {index}")


def params_and_specs(group: dict) -> tuple[list, list[ParamSpec]]:
    """The parameters of a group and how each is treated, from param_groups or from their tags. Raises ValueError where
    neither says it."""
    params = list(group["params"])
    if "specs" in group:
        _check_specs(params, group["specs"])
        return params, group["specs"]
    bare = [i for i, p in enumerate(params) if not isinstance(getattr(p, "use_muon", None), bool)]
    if bare:
        raise ValueError(
            f"a parameter group has {len(bare)} parameters without a role (the first is number "
            f"{bare[0]}); pass zeromuon.param_groups(model), or set p.use_muon to True or False"
        )
    return params, [ParamSpec.from_tag(p, f"parameter {i}") for i, p in enumerate(params)]


def _check_specs(params: list, specs: list[ParamSpec]) -> None:
    """The specs of param_groups go by position: raises ValueError when the parameters were moved about since."""
    shapes = [true_shape(p) for p in params]
    if shapes != [tuple(s.shape) for s in specs]:
        raise ValueError(
            f"a group of param_groups(model) was changed: it has {len(params)} parameters whose shapes do not fit its "
            f"{len(specs)} specs; say who gets Muon with include and exclude, or set p.use_muon before param_groups"
        )
