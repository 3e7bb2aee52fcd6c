"""Sees the attention logits of a model in training, without a change to its numbers.

transformers asks its AttentionInterface for the function of a config's name; here the answer notes the logits and then
calls what it would have been. So masks, which go by the name, stay as they are, and "eager" is the model's own function.
Thread: those that run the model's forward.
"""

from __future__ import annotations

import functools
import weakref

import torch
from torch import nn

from ..deepspeed.hooks import replace_once
from .logits import Pairs, largest_logits

_watches: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # attention module -> weakref of the watch over it
_EAGER, _FLEX = "eager", "flex_attention"


class LogitWatch:
    """The largest logit of each head since the last reset.

    modules: attention module -> its number of heads of queries. device: where the model computes. exact: as in
    :func:`largest_logits`.
    """

    def __init__(self, modules: dict[nn.Module, int], device: torch.device, exact: bool):
        self._exact, self._places, at = exact, weakref.WeakKeyDictionary(), 0
        for module, heads in modules.items():
            self._places[module] = (at, heads)
            _watches[module] = weakref.ref(self)
            at += heads
        self.largest = torch.full((at,), float("-inf"), device=device)

    def reset(self) -> None:
        """Forgets what was seen: a step was taken with it, or skipped."""
        self.largest.fill_(float("-inf"))

    def see(self, module: nn.Module, query, key, scaling: float, pairs: Pairs) -> None:
        """Raises ValueError where the model has other heads than its projections."""
        begin, heads = self._places[module]
        if query.shape[1] != heads:
            raise ValueError(
                f"qk_clip: {type(module).__name__} computes {query.shape[1]} heads, its projections have {heads}"
            )
        with torch.no_grad():
            mine = self.largest[begin : begin + heads]
            torch.maximum(mine, largest_logits(query, key, scaling, pairs, self._exact).to(mine.device), out=mine)


def report(module: nn.Module, query, key, scaling: float | None = None, mask=None, causal: bool = False) -> None:
    """Tells QK-Clip of the queries and keys that an attention module is about to multiply.

    For attention that transformers does not dispatch; call it in the module's forward. Does nothing where no ZeroMuon with
    ``qk_clip`` trains the module, and outside training.

    Args:
        module: the one that has the projections, called as transformers' are (q_proj, k_proj, ...), with its head counts.
        query: (batch, heads, queries, width). key: (batch, heads of keys, keys, width).
        scaling: of the logits; 1/sqrt(width) where it is None.
        mask: (batch or 1, heads or 1, queries, keys), true where a query sees a key, or what is added to the logits; or
            (batch, keys), true where there is a token.
        causal: a query sees no later key.
    """
    watch = _watch_of(module)
    if watch is not None:
        pairs = Pairs(query.shape[2], key.shape[2], mask, causal)
        watch.see(module, query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, pairs)


def watch_transformers() -> None:
    """From now on each attention function that transformers gives out reports, until :func:`zeromuon.unregister`. Does
    nothing where transformers is not there, or has no such place."""
    try:
        from transformers.modeling_utils import AttentionInterface
    except ImportError:
        return
    if hasattr(AttentionInterface, "get_interface"):
        replace_once(AttentionInterface, "get_interface", ["self", "attn_implementation", "default"], _reporting)


def _reporting(get_interface, self, attn_implementation, default):
    function = get_interface(self, attn_implementation, default)

    @functools.wraps(function)
    def reporting(module, query, key, value, attention_mask, *rest, **keywords):
        watch = _watch_of(module)
        if watch is not None:
            scaling = keywords.get("scaling")
            pairs = _pairs(attn_implementation or _EAGER, module, query, key, attention_mask, keywords)
            watch.see(module, query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, pairs)
        return function(module, query, key, value, attention_mask, *rest, **keywords)

    return reporting


def _watch_of(module) -> LogitWatch | None:
    """The one over a module that is training."""
    held = _watches.get(module) if isinstance(module, nn.Module) and module.training else None
    return None if held is None else held()


def _pairs(name: str, module, query, key, mask, keywords: dict) -> Pairs:
    """What transformers' function of this name lets through."""
    queries, keys = query.shape[2], key.shape[2]
    if name == _FLEX and mask is not None and not torch.is_tensor(mask):
        from torch.nn.attention.flex_attention import create_mask

        made = create_mask(mask.mask_mod, query.shape[0], query.shape[1], queries, keys, device=query.device)
        return Pairs(queries, keys, made)
    if mask is not None and mask.dim() == 4 or name == _EAGER:
        return Pairs(queries, keys, mask)
    causal = keywords.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    segments = None if mask is not None else _segments(keywords, query.shape[0], keys)
    return Pairs(queries, keys, mask, causal and queries > 1, keywords.get("sliding_window"), segments)


def _segments(keywords: dict, batch: int, keys: int):
    """(batch, keys) the sequences that were packed into one row, as flash attention takes them; None where they were not."""
    ends, positions = keywords.get("cu_seq_lens_k"), keywords.get("position_ids")
    if ends is not None:
        at = torch.arange(keys, device=ends.device)
        return torch.bucketize(at, ends[1:].to(at.dtype), right=True)[None]
    if positions is None or positions.dim() != 2 or positions.shape != (batch, keys):
        return None
    return (positions == positions[:, :1]).cumsum(-1)
