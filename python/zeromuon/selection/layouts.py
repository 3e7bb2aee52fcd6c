"""The matrices in the parameters of known modules: expert stacks, by what their modules say of themselves or by class, and
fused projections, by families.py."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .families import Parts, fused
from .heads import config_above, head_width, heads_of
from .model import Owner, true_shape
from .splits import Split

# transformers 5.23: modules of expert stacks that do not say how they are stored. Class -> attribute -> matrices of a
# stack: whether they are stored (inputs, outputs), and how many parts their outputs have.
_STACKS = {
    "Llama4TextExperts": {"gate_up_proj": (True, 2), "down_proj": (True, 1)},
    "LongcatFlashExperts": {"gate_up_proj": (False, 2), "down_proj": (False, 1)},
    "Step3p7Experts": {"gate_up_proj": (False, 2), "down_proj": (False, 1)},
    "InklingSharedExperts": {"gate_proj": (False, 1), "up_proj": (False, 1), "down_proj": (False, 1)},
    "JetMoeParallelExperts": {"weight": (False, 1)},  # and _PARTS_IN
    "MoshiFlexibleLinear": {"weight": (False, 1)},
    "KyutaiSpeechToTextFlexibleLinear": {"weight": (False, 1)},
}
# The parts of outputs where the module that has such a stack, and its name there, decide.
_PARTS_IN = {("JetMoeMoE", "input_linear"): 2}
# transformers 5.23: bare parameters (hidden, heads, width) that are one matrix: class -> attribute -> whether stored
# (inputs, outputs).
_BARE = {
    "XLNetRelativeAttention": {"q": True, "k": True, "v": True, "r": True, "o": False},
    "FunnelRelMultiheadAttention": {"r_kernel": True},
}
# The same as _STACKS of 2-D parameters: class -> the module's own count of experts, attribute -> whether stored (inputs, outputs).
_FLAT_STACKS = {"DbrxExpertGLU": ("moe_num_experts", {"w1": False, "v1": False, "w2": True})}


@dataclass(frozen=True)
class Known:
    """split: the matrices of a parameter. reason: how that is known. doubt: why they cannot be what is known of the module;
    None where they are. is_bare: whether that is all that says that it holds matrices: its module is none of torch's."""

    split: Split
    reason: str
    doubt: str | None = None
    is_bare: bool = False


PER_HEAD = ("none", "mla", "qkv")


@dataclass(frozen=True)
class Apart:
    """What of a parameter is apart. split_fused: gate and up, q and k and v, and all that a model keeps in one projection.
    per_head: one of :data:`PER_HEAD`: the heads of latent attention, or those of all q, k and v, too."""

    split_fused: bool = True
    per_head: str = "none"


def known_groups(owner: Owner, shape: tuple[int, ...]) -> Known | None:
    """The matrices of a convolution in groups, each of which has inputs of its own; None for all else."""
    module = owner.module
    groups = module.groups if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) else 1
    if groups == 1 or owner.attribute != "weight":
        return None
    return Known(Split(0, False, (shape[0] // groups,), groups, True), "")


def known_stack(owner: Owner, modules: dict, shape: tuple[int, ...], apart: Apart) -> Known | None:
    """The matrices of an expert stack, or the one of a bare parameter; None for a parameter that is none, or of a module that is not known.

    modules: of the model, by path.
    """
    if len(shape) == 2:
        return _flat_stack(owner, shape)
    if len(shape) != 3:
        return None
    kind = type(owner.module).__name__
    if owner.attribute in _BARE.get(kind, {}):
        return Known(Split(transposed=_BARE[kind][owner.attribute]), f"matrix of {kind}", is_bare=True)
    stored = _as_the_module_says(owner) or _by_class(owner)
    if stored is None:
        return None
    transposed, parts, reason = stored
    above, _, name = owner.path.rpartition(".")
    parts = _PARTS_IN.get((type(modules.get(above)).__name__, name), parts)
    outputs = shape[2] if transposed else shape[1]
    if outputs % parts:
        return Known(Split(shape[0], transposed), reason, f"{outputs} outputs are not gate and up", is_bare=True)
    sizes = (outputs // parts,) * parts if parts > 1 and apart.split_fused else ()
    return Known(Split(shape[0], transposed, sizes), reason, _doubt(owner, transposed), is_bare=True)


def known_parts(owner: Owner, modules: dict, shape: tuple[int, ...], transposed: bool, apart: Apart) -> Known | None:
    """The parts of a fused projection, or the heads of one; None for a parameter that is taken as one matrix because it is
    one, its module is not known, or nobody wants it apart.

    modules: of the model, by path. transposed: whether the parameter is stored (inputs, outputs).
    """
    path, projection = owner.path, owner.attribute
    if projection == "weight":
        path, _, projection = owner.path.rpartition(".")
    module = modules.get(path)
    outputs, kind = shape[1] if transposed else shape[0], type(module).__name__
    is_known, parts = fused(module, projection, outputs)
    if not is_known:
        return _plain_heads(path, projection, modules, outputs, transposed) if apart.per_head == "qkv" else None
    if parts is None:
        doubt = f"{outputs} outputs are not those of {projection} of {kind}"
        return Known(Split(transposed=transposed), "", doubt) if apart != Apart(False, "none") else None
    cut = _cut(parts, head_width(module, config_above(path, modules)), apart)
    return cut and Known(Split(0, transposed, *cut), f"{projection} of {kind}")


def _cut(parts: Parts, width: int | None, apart: Apart) -> tuple[tuple[int, ...], int, bool] | None:
    """sizes, heads and per_head of a fused projection's split; None where it stays one matrix.

    width: of an attention head of its module."""
    if parts.kind == "mla" and apart.per_head != "none":
        return (_there(parts.sizes) if apart.split_fused else (sum(parts.sizes),)), parts.heads, True
    if not apart.split_fused:
        return None
    if parts.kind == "qkv" and apart.per_head == "qkv" and width and all(size % width == 0 for size in parts.sizes):
        return (width,), parts.heads * sum(parts.sizes) // width, True
    return _there(parts.sizes), parts.heads, parts.apart


def _there(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size)


def _plain_heads(path: str, projection: str, modules: dict, outputs: int, transposed: bool) -> Known | None:
    """The heads of a projection of q, k or v alone."""
    module = modules.get(path)
    heads = heads_of(projection, module, config_above(path, modules), outputs)
    if heads is None:
        return None
    if heads.count is None:
        doubt = f"{outputs} outputs of {projection} of {type(module).__name__} are no attention heads that it speaks of"
        return Known(Split(transposed=transposed), "", doubt)
    return Known(Split(0, transposed, (heads.width,), heads.count, True), f"heads of {projection}")


def _as_the_module_says(owner: Owner) -> tuple[bool, int, str] | None:
    """transformers' use_experts_implementation puts the layout on the module."""
    transposed, has_gate = (getattr(owner.module, name, None) for name in ("is_transposed", "has_gate"))
    if not (isinstance(transposed, bool) and isinstance(has_gate, bool)):
        return None
    stored = "(in, out)" if transposed else "(out, in)"
    if owner.attribute in ("up_proj", "down_proj"):
        return transposed, 1, f"experts, stored {stored}"
    if owner.attribute != "gate_up_proj":
        return None
    if not getattr(owner.module, "is_concatenated", True):
        return transposed, 1, f"experts, stored {stored}; gate and up alternate and stay together"
    return transposed, 2, f"experts, stored {stored}"


def _by_class(owner: Owner) -> tuple[bool, int, str] | None:
    for kind in type(owner.module).__mro__:
        row = _STACKS.get(kind.__name__, {}).get(owner.attribute)
        if row is not None:
            return *row, f"experts of {kind.__name__}, stored {'(in, out)' if row[0] else '(out, in)'}"
    return None


def _flat_stack(owner: Owner, shape: tuple[int, ...]) -> Known | None:
    kind = type(owner.module).__name__
    count_name, attributes = _FLAT_STACKS.get(kind, ("", {}))
    transposed, count = attributes.get(owner.attribute), getattr(owner.module, count_name, 0)
    if transposed is None:
        return None
    reason = f"experts of {kind}, stored {'(in, out)' if transposed else '(out, in)'}"
    if count < 1 or shape[0] % count:
        return Known(
            Split(transposed=transposed), reason, f"{count} experts do not divide {shape[0]} rows", is_bare=True
        )
    return Known(Split(count, transposed), reason, is_bare=True)


def _doubt(owner: Owner, transposed: bool) -> str | None:
    """Up projection and down projection of one module must fit each other."""
    shapes = {name: true_shape(p) for name, p in owner.module.named_parameters(recurse=False)}
    up, down = shapes.get("gate_up_proj") or shapes.get("up_proj"), shapes.get("down_proj")
    if up is None or down is None or len(up) != 3 or len(down) != 3:
        return None
    (up_out, up_in), (down_out, down_in) = ((s[2], s[1]) if transposed else (s[1], s[2]) for s in (up, down))
    parts = 2 if "gate_up_proj" in shapes else 1
    if up_out == parts * down_in and up_in == down_out:
        return None
    return f"{tuple(up)} and {tuple(down)} do not fit each other as {'(in, out)' if transposed else '(out, in)'}"
