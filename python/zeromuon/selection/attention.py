"""Which outputs of which projections make the queries and keys of each attention head of a model.

The same table as for splits: fused projections by families.py, plain ones by heads.py, confirmed by the shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn

from .families import fused
from .heads import config_above, head_width, heads_of, is_key, is_query, value_of
from .model import is_conv1d, true_shape

_NORM = re.compile(r"(q|k|qk|query|key)_?(layer)?_?norm", re.IGNORECASE)


@dataclass(frozen=True)
class HeadOutputs:
    """Of a projection: outputs [begin, begin + length) of each of `begins` are those of a head, in the order of the heads.

    projection: path of the module that has weight and bias. transposed: whether its weight is stored (inputs, outputs).
    part: "q" of queries, "k" of keys, "rope" of queries whose keys all heads share (latent attention).
    """

    projection: str
    transposed: bool
    part: str
    begins: tuple[int, ...]
    length: int


@dataclass
class AttentionHeads:
    """queries: heads. keys: heads of keys; `queries / keys` neighbours share one. obstacle: why QK-Clip can do nothing for
    this module, as a clause; None where it can."""

    path: str
    queries: int = 0
    keys: int = 0
    outputs: list[HeadOutputs] = field(default_factory=list)
    obstacle: str | None = None


def attention_heads(model: nn.Module) -> list[AttentionHeads]:
    """Every module of the model that has projections of queries and of keys, in the model's order."""
    modules = dict(model.named_modules())
    found = (_heads_in(path, module, modules) for path, module in modules.items())
    return [heads for heads in found if heads is not None]


def _heads_in(path: str, module: nn.Module, modules: dict) -> AttentionHeads | None:
    found, claimed, unknown = AttentionHeads(path), set(), []
    config = config_above(path, modules)
    for name, child in module._modules.items():
        base = _base(child)
        weight = getattr(base, "weight", None)
        if not (isinstance(base, nn.Linear) or is_conv1d(base)) or len(shape := true_shape(weight)) != 2:
            continue
        parts = _parts(name, module, config, shape[1] if is_conv1d(base) else shape[0])
        if parts is None:
            continue
        claimed |= parts.keys()
        unknown += [name for begins, _ in parts.values() if not begins]
        if base is not child:
            found.obstacle = found.obstacle or f"{name} is adapted ({type(child).__name__})"
        elif not weight.requires_grad:
            found.obstacle = found.obstacle or f"{name} is frozen"
        where = f"{path}.{name}" if path else name
        found.outputs += [HeadOutputs(where, is_conv1d(base), part, *place) for part, place in parts.items()]
    if not {"q", "k"} <= claimed:
        return None
    counts = {o.part: len(o.begins) for o in found.outputs}
    found.queries, found.keys = counts["q"], counts["k"]
    if unknown or found.queries % max(found.keys, 1):
        found.obstacle = (
            f"the outputs of {', '.join(unknown) or 'q and k'} are no attention heads that it or its config speaks of"
        )
    norms = [
        name for name, child in module._modules.items() if _NORM.fullmatch(name) and not isinstance(child, nn.Identity)
    ]
    if norms:
        found.obstacle = (
            f"{', '.join(norms)}: queries and keys are normalised, so the scale of their weights does nothing"
        )
    return found


def _parts(name: str, module: nn.Module, config, outputs: int) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """part -> (begins, length) of a projection, with no begins where its heads are not known; None where it has neither
    queries nor keys."""
    is_known, parts = fused(module, name, outputs)
    if is_known and parts is None:
        return {"q": ((), 0), "k": ((), 0)} if is_query(name) or is_key(name) or "qkv" in name.lower() else None
    if is_known and parts.kind == "mla":
        nope, other = parts.sizes
        starts = range(0, outputs, nope + other)
        if name == "kv_b_proj":
            return {"k": (tuple(starts), nope)}
        queries = {"q": (tuple(starts), nope)}
        return {**queries, "rope": (tuple(s + nope for s in starts), other)} if other else queries
    if is_known:
        width = head_width(module, config)
        return _fused_heads(parts, width) if parts.kind == "qkv" else None
    if not (is_query(name) or is_key(name)):
        return None
    heads = heads_of(name, module, config, outputs)
    part = "q" if is_query(name) else "k"
    if heads is None or heads.count is None:
        return {part: ((), 0)}
    return {part: (tuple(range(0, outputs, heads.width)), heads.width)}


def _fused_heads(parts, width: int | None) -> dict[str, tuple[tuple[int, ...], int]]:
    begins: dict[str, list[int]] = {"q": [], "k": []}
    at = 0
    for _ in range(parts.heads):
        for letter, size in zip(parts.order, parts.sizes):
            if letter in begins and width and size % width == 0:
                begins[letter] += range(at, at + size, width)
            at += size
    return {part: (tuple(found), width or 0) for part, found in begins.items() if part in parts.order}


def _base(module: nn.Module) -> nn.Module:
    """What an adapter of peft adapts; else the module."""
    while (base := value_of(module, "base_layer")) is not None:
        module = base
    return module
