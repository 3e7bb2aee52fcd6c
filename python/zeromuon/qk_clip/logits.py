"""The largest attention logit of each head, over the pairs of a query and a key that the mask lets through."""

from __future__ import annotations

import torch

_ELEMENTS_AT_ONCE = 1 << 24  # logits of one sequence that are there at once, 64 MiB


def largest_logits(
    query: torch.Tensor, key: torch.Tensor, scaling: float, allowed: "Pairs", exact: bool = True
) -> torch.Tensor:
    """[heads] float32: the largest `scaling * q.k` of each head of queries.

    query: (batch, heads, queries, width). key: (batch, heads of keys, keys, width), each for as many neighbouring heads
    of queries. Signed. In float32 and without a gradient; one sequence of the batch after the other, in chunks of queries, so that
    memory is bounded and a sequence has the same bits in any batch.

    exact: else the bound by the product of the largest norms of a query and of a key of the head, whatever the mask.
    """
    query, key = query.detach().float(), key.detach().float()
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    if 0 in query.shape or 0 in key.shape:
        return query.new_full((heads,), float("-inf"))
    if not exact:
        of_keys = key.norm(dim=-1).amax((0, 2)).repeat_interleave(shared)
        return abs(scaling) * query.norm(dim=-1).amax((0, 2)) * of_keys
    largest = query.new_full((heads,), float("-inf"))
    rows = max(1, _ELEMENTS_AT_ONCE // (heads * key.shape[2]))
    for begin in range(0, query.shape[2], rows):
        part = query[:, :, begin : begin + rows]
        let_through = allowed.among(begin, begin + part.shape[2], query.device)
        for sequence in range(query.shape[0]):
            grouped = part[sequence].reshape(-1, shared * part.shape[2], part.shape[3])
            logits = (grouped @ key[sequence].mT).view(heads, part.shape[2], -1) * scaling
            if let_through is not None:
                logits.masked_fill_(~let_through[min(sequence, len(let_through) - 1)], float("-inf"))
            torch.maximum(largest, logits.amax((1, 2)), out=largest)
    return largest


class Pairs:
    """Which pairs of a query and a key an attention function lets through.

    mask: 4-D, bool or added to the logits; 2-D (batch, keys), true or 1 where there is a token; or None.
    causal: a query sees no later key; of fewer queries than keys, they are the last. window: nor one so far before it or
    farther. segments: (batch, keys), a number for each sequence that was packed into a row, of which none sees another.
    """

    def __init__(
        self, queries: int, keys: int, mask=None, causal: bool = False, window: int | None = None, segments=None
    ):
        self._before = keys - queries
        self._keys, self._mask, self._causal, self._window, self._segments = keys, mask, causal, window, segments

    def among(self, begin: int, end: int, device: torch.device) -> torch.Tensor | None:
        """[batch or 1, heads or 1, end - begin, keys] bool of these queries; None where all pairs are let through."""
        found = self._given(begin, end)
        at = torch.arange(begin + self._before, end + self._before, device=device)[:, None]
        keys = torch.arange(self._keys, device=device)[None]
        if self._causal:
            found = _both(found, (keys <= at)[None, None])
        if self._window is not None:
            found = _both(found, (at - keys < self._window)[None, None])
        if self._segments is not None:
            of_queries = self._segments[:, begin + self._before : end + self._before]
            found = _both(found, (of_queries[:, :, None] == self._segments[:, None, :])[:, None])
        return found

    def _given(self, begin: int, end: int) -> torch.Tensor | None:
        mask = self._mask
        if mask is None:
            return None
        if mask.dim() == 2:
            return mask[:, -self._keys :].bool()[:, None, None, :].expand(-1, -1, end - begin, -1)
        mask = mask[..., : self._keys] if mask.shape[-2] == 1 else mask[..., begin:end, : self._keys]
        # What is added to forbid a pair is the least number of its data type, or a part of it; biases are far from that.
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _both(a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
    return b if a is None else a & b
