"""Who gets Muon: by module and role, not by the number of dimensions.

Every trainable parameter is judged once, by the first line that applies:

1. ``p.use_muon``, set by the user
2. the `exclude` patterns, then the `include` patterns
3. biases of any shape, norms, vectors: AdamW
4. weights that an embedding or a head shares, embeddings, output heads, input projections, position biases, routers,
   and what has one row or one column: AdamW
5. weights of Linear, transformers' Conv1D, attention in-projections and convolutions: Muon, but depthwise and
   patch or stem convolutions AdamW; expert stacks and bare matrices of known modules and those that `splits` or
   ``p.muon_split`` describes: Muon, each expert a matrix
6. whatever is left (bare parameters of unknown modules, stacks that nobody describes): AdamW

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

from ..base.warn import warn
from ..base.words import all_near
from .layouts import PER_HEAD, Apart, Known, known_groups, known_parts, known_stack
from .model import ModelFacts, Owner, is_conv1d, true_shape
from .splits import Split, read_split, view_of
from .table import table_lines

# q, k and v of torch's own attention: functional Linears, fused into (3*embed, embed) or apart.
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_BIAS = re.compile(r"(^|_)bias(es)?(_[kvu])?$")
# Bare parameters that are looked up or put before the inputs, not multiplied with them; and others that decay would harm.
_TABLE = re.compile(r"token|embed|(^|_)emb(_|$)|_table$|rel_pos|position|^latents|^probe$|(^|_)query$")
_NO_DECAY = re.compile(r"A_log$")
_UNKNOWN_STACK = "3-D expert stack"


@dataclass(frozen=True)
class ParamSpec:
    """What the optimizer knows of one parameter besides its values."""

    name: str
    role: str  # "muon" or "adamw"
    shape: tuple[int, ...]  # the true shape, also under zero.Init
    rows: int  # of the 2-D view as stored; 0 for adamw
    cols: int
    transposed: bool  # stored as (inputs, outputs): the scale uses cols/rows
    decay: (
        bool  # weight decay applies by default: a matrix, or a tensor of two or more dimensions that is neither bias,
    )
    # norm, token nor table
    reason: str
    split: Split = Split()
    doubt: str | None = None  # why its matrices are not taken apart, where that should be possible

    @property
    def blocks(self) -> list[tuple[int, int, int, int, int, int]]:
        """The matrices in the view, none where it is one; see :meth:`Split.blocks`."""
        return self.split.blocks(self.rows, self.cols) if self.role == "muon" else []

    @property
    def matrices(self) -> str:
        """Those that Newton-Schulz works on, by their shapes: empty where the parameter is one, or AdamW's."""
        return self.split.text(self.rows, self.cols) if self.role == "muon" else ""

    @staticmethod
    def from_tag(param: torch.Tensor, name: str) -> "ParamSpec":
        """The spec of a parameter whose role is its own ``use_muon`` tag and whose module is not known.

        param: a tensor with a boolean attribute ``use_muon``; 2-D (rows are outputs), or a convolution kernel
        (out, in, height, width, ...) seen as (out, rest); or with a ``muon_split``, as in `splits` of
        :func:`param_groups`. Raises ValueError for a tag that is no boolean, and for True on a shape that does not say
        which matrices it holds.
        """
        role = "muon" if _tag(param, name) else "adamw"
        told = _Told(param.muon_split, f'parameter "{name}": muon_split') if hasattr(param, "muon_split") else None
        return _spec(name, true_shape(param), role, "use_muon set by user", None, told)


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


def param_groups(
    model: nn.Module, include=None, exclude=None, splits=None, split_fused: bool = True, per_head: str = "none"
) -> ParamGroups:
    """The trainable parameters of a model as one group for Muon and one for AdamW; rank 0 prints the table, and warns of
    parameters that hold several matrices where it is not known, or in doubt, how they lie in them.

    Args:
        model: the module, before or after ``deepspeed.zero.Init`` has partitioned its parameters.
        include: shell patterns (fnmatch) of parameter names that get Muon against the rules.
        exclude: patterns of names that get AdamW; it beats `include`. A boolean ``p.use_muon`` beats both.
        splits: pattern -> which matrices a parameter holds, against the rules: sizes of parts along its outputs, as a list;
            or a dict of ``sizes``, ``heads`` (how often they follow each other), ``per_head`` (true: the parts of every
            head apart), ``stack`` (true for (E, ..., ...), or how many matrices follow each other) and ``transposed``
            (true: stored (inputs, outputs)); false: it is one matrix. Of several patterns the last that fits counts, and
            a ``p.muon_split`` beats them.
        split_fused: whether matrices that a model stores as one parameter, such as gate and up of an expert, are
            orthogonalised apart. The experts of a stack always are.
        per_head: whether attention heads are orthogonalised apart: "none"; "mla", those of the up-projections of latent
            attention, with their parts apart where split_fused says so; "qkv", those, and of every projection of q, k
            and v (fused ones, where split_fused says so), k and v by their own number of heads. Output projections and
            down-projections never are.

    Raises:
        ValueError: nothing is eligible for Muon, a pattern matches no trainable parameter, a pattern or tag
            gives Muon something that is not a matrix, a split does not fit its parameter, per_head finds no heads, or `model`
            is not a module.
    """
    groups = _grouped(model, roles_for(model, include, exclude, splits, split_fused, per_head))
    if _rank() == 0:
        print(groups.table(), flush=True)
        _warn_of_doubts(groups.specs)
    return groups


def roles_for(
    model: nn.Module, include=None, exclude=None, splits=None, split_fused: bool = True, per_head: str = "none"
) -> dict[int, ParamSpec]:
    """``id(parameter)`` -> spec for every trainable parameter, in the model's order; prints nothing.

    Takes and raises what :func:`param_groups` does.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"param_groups: got {type(model).__name__}, expected a torch.nn.Module: roles go by module; pass the "
            f"model itself, not its parameters"
        )
    if not isinstance(split_fused, bool):
        raise ValueError(f"split_fused: got {split_fused!r}, expected true or false")
    if per_head not in PER_HEAD:
        raise ValueError(f"per_head: got {per_head!r}, expected {', '.join(PER_HEAD[:-1])} or {PER_HEAD[-1]}")
    facts = ModelFacts(model)
    patterns = _Patterns(facts, include, exclude, splits)
    apart = Apart(split_fused, per_head)
    specs = {id(p): _judge(p, owners, facts, patterns, apart) for p, owners in facts.trainable}
    patterns.check_splits({owner.name: specs[id(p)] for p, owners in facts.trainable for owner in owners})
    if not any(spec.role == "muon" for spec in specs.values()):
        raise ValueError(_nothing_eligible(specs.values(), facts))
    if per_head != "none":
        whole = {id(p): _judge(p, owners, facts, patterns, Apart(split_fused)) for p, owners in facts.trainable}
        if all(spec.split == whole[key].split for key, spec in specs.items()):
            raise ValueError(_no_heads(per_head, specs.values()))
    return specs


# ---- one parameter -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """What the user says of a parameter's matrices, and where."""

    split: object  # as read_split takes it
    where: str


def _judge(param, owners: list[Owner], facts: "ModelFacts", patterns: "_Patterns", apart: Apart) -> ParamSpec:
    shape, owner = true_shape(param), owners[0]
    told, known = patterns.told(param, owners), _known(owner, shape, facts, apart)
    forced = _forced(param, owners, patterns)
    role, reason = forced or _rule(owners, shape, facts, told, known)
    if role == "adamw" and hasattr(param, "muon_split"):
        raise ValueError(
            f'parameter "{owner.name}": muon_split is set, and it gets AdamW ({reason}), which knows no matrices; set use_muon, '
            f"too, or delete the attribute"
        )
    return _spec(owner.name, shape, role, reason, owner.module, told, known)


def _known(owner: Owner, shape: tuple[int, ...], facts: "ModelFacts", apart: Apart) -> Known | None:
    """What the module says of the matrices of its parameter."""
    if len(shape) < 2 or 0 in shape:
        return None
    known = known_stack(owner, facts.modules, shape, apart) or known_groups(owner, shape)
    return known or known_parts(owner, facts.modules, shape, _stored_transposed(owner.module), apart)


def _stored_transposed(module: nn.Module | None) -> bool:
    return is_conv1d(module) or isinstance(module, _ConvTransposeNd)


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


def _rule(
    owners: list[Owner], shape: tuple[int, ...], facts: "ModelFacts", told: _Told | None, known: Known | None
) -> tuple[str, str]:
    owner = owners[0]
    against = (
        _elementwise_reason(owner, shape)
        or facts.tied_reason(owners)
        or facts.embedding_reason(owner)
        or facts.head_reasons.get(owner.path)
        or facts.adapter_reason(owner.path)
        or facts.router_reason(owner.path, shape[0])
        or facts.position_bias_reason(owner)
        or facts.input_reason(owner)
        or facts.convolution_reason(owner)
    )
    if against:
        return "adamw", against
    matrix = _hidden_reason(owner)
    if matrix:
        return ("muon", matrix) if min(shape[0], math.prod(shape[1:])) > 1 else ("adamw", "one row or column")
    if told and len(shape) == 3:
        return "muon", "stack, as told"
    if known and known.is_bare:
        return ("adamw" if known.doubt else "muon"), known.reason
    return "adamw", _unknown_reason(owner, shape)


def _elementwise_reason(owner: Owner, shape) -> str | None:
    if _BIAS.search(owner.attribute):
        return "bias"
    if "norm" in type(owner.module).__name__.lower() and _hidden_reason(owner) is None:
        return "norm"
    return "not a matrix" if len(shape) < 2 or 0 in shape else None


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
        return f"{_UNKNOWN_STACK} of {kind}"
    return f"{'token or table' if _TABLE.search(owner.attribute) else 'bare parameter'} of {kind}"


def _spec(
    name: str, shape, role: str, reason: str, module: nn.Module | None, told: _Told | None, known: Known | None = None
) -> ParamSpec:
    if role == "adamw":
        doubt = _doubt_of_stack(reason, known)
        return ParamSpec(name, role, shape, 0, 0, False, _decays(name, shape, reason), reason, doubt=doubt)
    doubt = known.doubt if known and not told else None
    where = f'parameter "{name}" of shape {shape} ({reason})'
    split = _split(where, shape, module, told, known)
    return ParamSpec(name, role, shape, *view_of(shape, split.stack), split.transposed, True, reason, split, doubt)


def _decays(name: str, shape, reason: str) -> bool:
    """Whether weight decay applies by default to a parameter of AdamW."""
    attribute = name.rpartition(".")[2]
    if reason in ("bias", "norm", "position bias") or reason.startswith("token or table") or _BIAS.search(attribute):
        return False
    return max(shape, default=0) < math.prod(shape) and not _NO_DECAY.search(attribute)


def _doubt_of_stack(reason: str, known: Known | None) -> str | None:
    """Why a stack is AdamW's; None of all else that is."""
    if known and known.doubt and reason == known.reason:
        return known.doubt
    return "it is not known how its matrices are stored" if reason.startswith(_UNKNOWN_STACK) else None


def _split(where: str, shape, module: nn.Module | None, told: _Told | None, known: Known | None) -> Split:
    """The matrices of a parameter that gets Muon. Raises ValueError where its shape, and what is told, do not say them."""
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{where}: Muon expects a matrix of at least two dimensions; narrow the pattern or the tag")
    is_stack = len(shape) == 3 and not isinstance(module, _ConvNd)
    transposed = _stored_transposed(module)
    if told:
        return read_split(told.split, shape, None if is_stack else transposed, f"{told.where}: {where}")
    if known and not known.doubt:
        return known.split
    if is_stack:
        because = f" ({known.doubt})" if known else ""
        raise ValueError(
            f"{where}: a 3-D stack holds several matrices, and nothing says how they lie in it{because}; say "
            f'splits={{pattern: {{"stack": true, "transposed": false}}}} where each is (outputs, inputs), or leave it to AdamW. '
            f"For a Conv1d kernel take param_groups(model), which knows the module"
        )
    return Split(transposed=transposed)


def _tag(param, name: str) -> bool:
    tag = param.use_muon
    if not isinstance(tag, bool):
        raise ValueError(f'parameter "{name}": use_muon is {tag!r}, expected True or False')
    return tag


# ---- patterns ------------------------------------------------------------------------------------


class _Patterns:
    """The include and exclude patterns and the splits, checked. Raises ValueError for one that matches nothing trainable."""

    def __init__(self, facts: ModelFacts, include, exclude, splits):
        names = [owner.name for _, owners in facts.trainable for owner in owners]
        self.include = self._checked("include", include, names)
        self.exclude = self._checked("exclude", exclude, names)
        if not isinstance(splits or {}, dict):
            raise ValueError(f"splits: got {splits!r}, expected a dict of patterns of parameter names")
        self.splits = dict(splits or {})
        self._checked("splits", list(self.splits), names)

    def told(self, param, owners: list[Owner]) -> _Told | None:
        """What the user says of the parameter's matrices, or None."""
        if hasattr(param, "muon_split"):
            return _Told(param.muon_split, "muon_split")
        fitting = [p for p in self.splits if any(matches(owner.name, p) for owner in owners)]
        return _Told(self.splits[fitting[-1]], f"splits[{fitting[-1]!r}]") if fitting else None

    def check_splits(self, specs: dict[str, ParamSpec]) -> None:
        """Raises ValueError for one that no parameter of Muon takes. specs: by every name."""
        for pattern in self.splits:
            fitting = [name for name in specs if matches(name, pattern)]
            if all(specs[name].role == "adamw" for name in fitting):
                raise ValueError(
                    f'splits[{pattern!r}]: "{fitting[0]}" gets AdamW ({specs[fitting[0]].reason}), which knows no matrices; '
                    f"name it in include, or leave the split out"
                )

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


def _no_heads(per_head: str, specs) -> str:
    doubts = sorted({spec.doubt for spec in specs if spec.role == "muon" and spec.doubt})
    kind = "up-projection of latent attention (q_b_proj, kv_b_proj)" if per_head == "mla" else "projection of q, k or v"
    also = "" if per_head == "mla" else ' (per_head_muon of "type": "Muon")'
    return (
        f"per_head={per_head!r}{also}: there is no {kind} whose attention heads are known by its module or config"
        f"{': ' + '; '.join(doubts[:3]) if doubts else ''}; say which heads there are with "
        f'splits={{pattern: {{"heads": A, "per_head": true}}}}, or leave it out'
    )


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


def _warn_of_doubts(specs: list[ParamSpec]) -> None:
    alike: dict[tuple, list[ParamSpec]] = {}
    for spec in specs:
        if spec.doubt:
            alike.setdefault((spec.role, spec.doubt), []).append(spec)
    for (role, doubt), same in alike.items():
        names = ", ".join(spec.name for spec in same[:3]) + (f" and {len(same) - 3} more" if len(same) > 3 else "")
        becomes = "orthogonalised as one matrix" if role == "muon" else "left to AdamW"
        warn(
            f"{names}: {doubt}, so it is {becomes}; say with splits={{pattern: ...}} which matrices it holds, or that it is one "
            f"(false)",
            stacklevel=3,
        )


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _total(group: dict) -> str:
    muon, specs = group["role"] == "muon", group["specs"]
    count = sum(len(spec.blocks) or 1 for spec in specs) if muon else len(specs)
    numel = sum(math.prod(spec.shape) for spec in specs)
    return f"{group['role']}: {count} {'matrices' if muon else 'tensors'}, {numel / 1e6:.3f} M parameters"
