"""Who gets Muon: by module and role, not by the number of dimensions.

Every trainable parameter is judged once, by the first line that applies:

1. ``p.use_muon``, set by the user
2. the `exclude` patterns, then the `include` patterns
3. biases of any shape, norms, vectors: AdamW
4. tied weights (two modules own them), embeddings, the output head, routers: AdamW
5. weights of Linear, transformers' Conv1D, attention in-projections and convolutions: Muon, but depthwise and
   patch or stem convolutions AdamW
6. whatever is left (bare parameters of unknown modules, 3-D expert stacks): AdamW

Shapes: rows and cols are those of the 2-D view as stored; a transposed view is (inputs, outputs).
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..base.words import all_near
from .model import ModelFacts, Owner, is_conv1d, true_shape
from .table import table_lines

# q, k and v of torch's own attention: functional Linears, fused into (3*embed, embed) or apart.
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_BIAS = re.compile(r"(^|_)bias(_[kv])?$")


@dataclass(frozen=True)
class ParamSpec:
    """What the optimizer knows of one parameter besides its values."""

    name: str
    role: str  # "muon" or "adamw"
    shape: tuple[int, ...]  # the true shape, also under zero.Init
    rows: int  # of the 2-D view as stored; 0 for adamw
    cols: int
    transposed: bool  # stored as (inputs, outputs): the scale uses cols/rows
    decay: bool  # weight decay applies by default: at least two dimensions
    reason: str

    @staticmethod
    def from_tag(param: torch.Tensor, name: str) -> "ParamSpec":
        """The spec of a parameter whose role is its own ``use_muon`` tag and whose module is not known.

        param: a tensor with a boolean attribute ``use_muon``; 2-D (rows are outputs), or a convolution kernel
        (out, in, height, width, ...) seen as (out, rest). Raises ValueError for a tag that is no boolean, and
        for True on a shape that does not say which matrix it is.
        """
        role = "muon" if _tag(param, name) else "adamw"
        return _spec(name, true_shape(param), role, "use_muon set by user", None)


class ParamGroups(list):
    """The groups, at most one per role, each a dict with "params", "role" and "specs"; prints as a table."""

    frozen = 0  # parameters left out because they do not require a gradient

    @property
    def specs(self) -> list[ParamSpec]:
        return [spec for group in self for spec in group["specs"]]

    def table(self) -> str:
        """Who gets Muon and why, as text; rows that differ only by a layer's number are one row with a count."""
        totals = [_total(group) for group in self]
        if self.frozen:
            totals.append(f"frozen, left out: {self.frozen}")
        return "\n".join([*table_lines(self.specs), *totals])

    def save(self, path) -> None:
        """Writes every parameter's role, shape, matrix and reason to `path` as JSON."""
        document = {"format": 1, "parameters": [asdict(spec) for spec in self.specs]}
        Path(path).write_text(json.dumps(document, indent=1) + "\n")


def param_groups(model: nn.Module, include=None, exclude=None) -> ParamGroups:
    """The trainable parameters of a model as one group for Muon and one for AdamW; rank 0 prints the table.

    Args:
        model: the module, before or after ``deepspeed.zero.Init`` has partitioned its parameters.
        include: shell patterns (fnmatch) of parameter names that get Muon against the rules.
        exclude: patterns of names that get AdamW; it beats `include`. A boolean ``p.use_muon`` beats both.

    Raises:
        ValueError: nothing is eligible for Muon, a pattern matches no trainable parameter, a pattern or tag
            gives Muon something that is not a matrix, or `model` is not a module.
    """
    groups = _grouped(model, roles_for(model, include, exclude))
    if _rank() == 0:
        print(groups.table(), flush=True)
    return groups


def roles_for(model: nn.Module, include=None, exclude=None) -> dict[int, ParamSpec]:
    """``id(parameter)`` -> spec for every trainable parameter, in the model's order; prints nothing.

    Takes and raises what :func:`param_groups` does.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"param_groups: got {type(model).__name__}, expected a torch.nn.Module: roles go by module; pass the "
            f"model itself, not its parameters"
        )
    facts = ModelFacts(model)
    patterns = _Patterns(facts, include, exclude)
    specs = {id(p): _judge(p, owners, facts, patterns) for p, owners in facts.trainable}
    if not any(spec.role == "muon" for spec in specs.values()):
        raise ValueError(_nothing_eligible(specs.values(), facts))
    return specs


# ---- one parameter -------------------------------------------------------------------------------


def _judge(param, owners: list[Owner], facts: "ModelFacts", patterns: "_Patterns") -> ParamSpec:
    shape, owner = true_shape(param), owners[0]
    forced = _forced(param, owners, patterns)
    role, reason = forced or _rule(owners, shape, facts)
    return _spec(owner.name, shape, role, reason, owner.module)


def _forced(param, owners: list[Owner], patterns: "_Patterns"):
    """(role, reason) as told by the user, or None."""
    if hasattr(param, "use_muon"):
        return "muon" if _tag(param, owners[0].name) else "adamw", "use_muon set by user"
    for role, given in (("adamw", patterns.exclude), ("muon", patterns.include)):
        for pattern in given:
            if any(matches(owner.name, pattern) for owner in owners):
                return role, f"{'exclude' if role == 'adamw' else 'include'} pattern {pattern!r}"
    return None


def matches(name: str, pattern: str) -> bool:
    """A name is itself before it is a shell pattern: brackets occur in names."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _rule(owners: list[Owner], shape: tuple[int, ...], facts: "ModelFacts") -> tuple[str, str]:
    owner = owners[0]
    against = (
        _elementwise_reason(owner, shape)
        or _tied_reason(owners)
        or facts.embedding_reason(owner)
        or facts.head_reasons.get(owner.path)
        or facts.adapter_reason(owner.path)
        or facts.router_reason(owner.path)
        or facts.convolution_reason(owner)
    )
    if against:
        return "adamw", against
    matrix = _hidden_reason(owner)
    return ("muon", matrix) if matrix else ("adamw", _unknown_reason(owner, shape))


def _elementwise_reason(owner: Owner, shape) -> str | None:
    if _BIAS.search(owner.attribute):
        return "bias"
    if "norm" in type(owner.module).__name__.lower() and _hidden_reason(owner) is None:
        return "norm"
    return "not a matrix" if len(shape) < 2 or 0 in shape else None


def _tied_reason(owners: list[Owner]) -> str | None:
    return f"tied with {owners[1].name}" if len(owners) > 1 else None


def _hidden_reason(owner: Owner) -> str | None:
    module = owner.module
    if isinstance(module, nn.MultiheadAttention) and owner.attribute in _ATTENTION_WEIGHTS:
        return "hidden Linear (attention in-projection)"
    if owner.attribute != "weight":
        return None
    if isinstance(module, nn.Linear):
        return "hidden Linear"
    if is_conv1d(module):
        return "hidden Conv1D, stored (in, out)"
    return "hidden convolution" if isinstance(module, _ConvNd) else None


def _unknown_reason(owner: Owner, shape) -> str:
    kind = type(owner.module).__name__
    if len(shape) == 3 and "expert" in owner.name.lower() + kind.lower():
        return "3-D expert stack"
    return f"bare parameter of {kind}"


def _spec(name: str, shape, role: str, reason: str, module: nn.Module | None) -> ParamSpec:
    rows, cols = _matrix(name, shape, reason, module) if role == "muon" else (0, 0)
    transposed = role == "muon" and (is_conv1d(module) or isinstance(module, _ConvTransposeNd))
    return ParamSpec(name, role, shape, rows, cols, transposed, len(shape) >= 2, reason)


def _matrix(name: str, shape, reason: str, module: nn.Module | None) -> tuple[int, int]:
    """(rows, cols) of the 2-D view. Raises ValueError for a shape that is not one matrix."""
    where = f'parameter "{name}" of shape {shape} ({reason})'
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{where}: Muon expects a matrix of at least two dimensions; narrow the pattern or the tag")
    if len(shape) == 3 and not isinstance(module, _ConvNd):
        raise ValueError(
            f"{where}: a 3-D stack holds several matrices, and splitting it is not available in this version; leave "
            f"it to AdamW, or for a Conv1d kernel take param_groups(model), which knows the module"
        )
    return shape[0], math.prod(shape[1:])


def _tag(param, name: str) -> bool:
    tag = param.use_muon
    if not isinstance(tag, bool):
        raise ValueError(f'parameter "{name}": use_muon is {tag!r}, expected True or False')
    return tag


# ---- patterns ------------------------------------------------------------------------------------


class _Patterns:
    """The include and exclude patterns, checked. Raises ValueError for one that matches nothing trainable."""

    def __init__(self, facts: ModelFacts, include, exclude):
        names = [owner.name for _, owners in facts.trainable for owner in owners]
        self.include = self._checked("include", include, names)
        self.exclude = self._checked("exclude", exclude, names)

    @staticmethod
    def _checked(keyword: str, given, names: list[str]) -> list[str]:
        patterns = [given] if isinstance(given, str) else list(given or [])
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise ValueError(f"{keyword}: got {pattern!r}, expected patterns of parameter names (strings)")
            if not any(matches(name, pattern) for name in names):
                near = all_near(pattern, names, 3) or names[:3]
                raise ValueError(
                    f"{keyword}={pattern!r} matches none of the {len(names)} trainable parameters; the nearest "
                    f"names are {', '.join(near)}"
                )
        return patterns


def _nothing_eligible(specs, facts: ModelFacts) -> str:
    reasons = Counter(re.sub(r" (with|of|\().*", "", spec.reason) for spec in specs)
    found = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    return (
        f"nothing is eligible for Muon: of {len(facts.trainable) + facts.frozen} parameters {facts.frozen} are "
        f"frozen, the trainable ones are: {found}; use AdamW, or name matrices with include=[...]"
    )


# ---- groups --------------------------------------------------------------------------------------


def _grouped(model: nn.Module, specs: dict[int, ParamSpec]) -> ParamGroups:
    everything = list(model.parameters())
    params = [p for p in everything if id(p) in specs]
    groups = ParamGroups()
    groups.frozen = len(everything) - len(params)
    for role in ("muon", "adamw"):
        chosen = [p for p in params if specs[id(p)].role == role]
        if chosen:
            groups.append({"params": chosen, "role": role, "specs": [specs[id(p)] for p in chosen]})
    return groups


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _total(group: dict) -> str:
    kind = "matrices" if group["role"] == "muon" else "tensors"
    numel = sum(math.prod(spec.shape) for spec in group["specs"])
    return f"{group['role']}: {len(group['specs'])} {kind}, {numel / 1e6:.3f} M parameters"
