"""Attention heads: how wide they are, and of how many a plain projection of q, k or v consists. No torch.

The name of a projection is a claim, its shape the proof: outputs that are not the heads that the module, or its config,
speaks of are no heads.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a projection is called whose outputs are heads, by the beginning of its name; and what is called alike and is not:
# several kinds of heads in one, or the down-projection of latent attention.
_QUERY, _KEY, _VALUE = ("q_proj", "query", "wq"), ("k_proj", "key", "wk"), ("v_proj", "value", "wv")
_OTHERS = ("qkv_proj", "query_key_value", "c_attn", "in_proj_qkv", "wqkv", "q_a_proj", "kv_a_proj")
# Names of the numbers, those of the module before those of its config.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "attention_heads")
_SHARED_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
_WIDTHS = ("head_dim", "head_size", "attention_head_size")


@dataclass(frozen=True)
class Heads:
    """count: of the projection; None where its outputs are not those that its module and config speak of. width: outputs
    of one."""

    count: int | None
    width: int = 0


def heads_of(projection: str, module, config, outputs: int) -> Heads | None:
    """The heads of a weight of so many outputs, called `projection` in `module`; None where the name claims none.

    config: of the module, or of the model around it; None where neither has one.
    """
    name = projection.lower()
    if name.startswith(_OTHERS) or not name.startswith((*_QUERY, *_KEY, *_VALUE)):
        return None
    names = _HEADS if name.startswith(_QUERY) else (*_SHARED_HEADS, *_HEADS)
    counts = {_first(source, (count,)) for source in (module, config) for count in names} - {None}
    widths = _widths(module, config)
    of_several = (width for width in widths if outputs in {width * n for n in counts})
    width = next(of_several, outputs if outputs in widths else None)
    return Heads(outputs // width, width) if width else Heads(None)


def is_query(projection: str) -> bool:
    """Whether the name claims queries alone."""
    return projection.lower().startswith(_QUERY) and not projection.lower().startswith(_OTHERS)


def is_key(projection: str) -> bool:
    """Whether the name claims keys alone."""
    return projection.lower().startswith(_KEY)


def head_width(module, config) -> int | None:
    """Outputs of one attention head of a module, or of any of the model; None where neither says it."""
    return next(iter(_widths(module, config)), None)


def _widths(module, config) -> list[int]:
    """Those that the module and its config name, and the one that follows from its heads; the surest first."""
    named = [_first(source, (width,)) for source in (module, config) for width in _WIDTHS]
    hidden, heads = _first(config, ("hidden_size",)), _first(config, _HEADS)
    if hidden and heads and hidden % heads == 0:
        named.append(hidden // heads)
    return [width for width in named if width]


def config_above(path: str, modules: dict):
    """The config of the module at `path`, or of the next above it that has one; the text's where there are several."""
    while True:
        config = value_of(modules.get(path), "config")
        if config is not None or not path:
            return value_of(config, "text_config") or config
        path = path.rpartition(".")[0]


def value_of(source, name: str):
    """What a module or config calls so; None where it does not, or does not say it for all layers at once."""
    try:
        return getattr(source, name, None)
    except (
        Exception
    ):  # foreign code; transformers' configs raise their own error for a number that layers have of their own
        return None


def _first(source, names: tuple[str, ...]) -> int | None:
    """The first of the names that is a whole number from 1 on."""
    values = (value_of(source, name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 1), None)
