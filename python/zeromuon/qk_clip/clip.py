"""The step of QK-Clip: from the largest logits of all ranks to factors of the heads' rows, on each rank's own shard.

With S the largest logit of a head since the last step, gamma = min(1, tau / S), and 1 for S <= 0. After the update of
whichever role a weight has, its rows that make the head's queries are multiplied with gamma^alpha, those that make its
keys with gamma^(1-alpha), and biases likewise. Heads that share keys take the smallest gamma among them (as Megatron
does). In latent attention the part of the queries whose keys all heads share takes gamma, those keys nothing.
(arXiv 2507.20534, section 2.1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ..base.warn import warn
from ..deepspeed import layout
from ..selection.attention import AttentionHeads, HeadOutputs, attention_heads
from ..selection.model import true_shape
from .watch import LogitWatch, watch_transformers

_CALL_US = (
    "for attention of your own, call its projections so, give the module num_heads and head_dim, and call "
    "zeromuon.qk_clip.report(module, q, k) in its forward"
)


@dataclass(frozen=True)
class _Place:
    """A weight or bias of heads, as this rank holds it.

    attention: index of the module. span: elements of the parameter, in its flat order, that are here, at `offset` of the
    sub-group's shard. width: elements of an output (of a row, or 1 of a bias); of a weight stored (inputs, outputs), 0.
    columns: outputs in a row of such a weight.
    """

    attention: int
    outputs: HeadOutputs
    span: tuple[int, int]
    offset: int
    width: int
    columns: int


class QkClip:
    """Over the attention of one engine's model. Thread: the one that steps.

    Raises ValueError where a module's heads are not known, or its weights cannot be clipped.
    """

    def __init__(self, model: nn.Module, options: dict):
        self._clips = options["qk_clip"]
        self._threshold, self._alpha = options["qk_clip_threshold"], options["qk_clip_alpha"]
        self._model, self._attention = model, _checked(model, self._clips)
        modules = {model.get_submodule(a.path): a.queries for a in self._attention}
        self._watch = LogitWatch(modules, layout.compute_device(), options["qk_clip_statistic"] == "exact")
        self._places: dict[int, list[_Place]] | None = None  # sub-group -> those in it
        self._gammas: list[list[float]] = []  # of each module, of each head of keys, in this step
        self._warned = False
        self.collectives = 0
        self.seen = {"largest_logit": None, "clipped_heads": 0, "heads": sum(a.queries for a in self._attention)}
        watch_transformers()

    def bind(self, zero3, sub_groups: list[layout.SubGroup]) -> None:
        """Finds the heads' rows in this rank's shards. Raises ValueError for a weight that this optimizer does not step."""
        held = {id(p): g for g in sub_groups for p in g.params}
        places: dict[int, list[_Place]] = {g.index: [] for g in sub_groups}
        for index, attention in enumerate(self._attention if self._clips else ()):
            for outputs in attention.outputs:
                projection = self._model.get_submodule(outputs.projection)
                for name, param in projection.named_parameters(recurse=False):
                    if name not in ("weight", "bias"):
                        continue
                    if id(param) not in held:
                        raise ValueError(f"qk_clip: {outputs.projection}.{name} is not stepped by this optimizer")
                    places[held[id(param)].index].append(_place(zero3, index, outputs, name, param))
        self._places = places

    def reset(self) -> None:
        self._watch.reset()

    def begin(self, group) -> None:
        """What all ranks of the process group saw becomes the factors of this step. All ranks call it together; one
        all-reduce.

        Raises ValueError, on all ranks, where no module reported."""
        largest = self._watch.largest
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        self.collectives += 1
        seen = largest.tolist()
        self._watch.reset()
        if all(s == -math.inf for s in seen):
            raise ValueError(
                f"qk_clip: no attention reported its queries and keys in training since the last step ({self._attention[0].path} "
                f"was expected to); {_CALL_US}, or leave qk_clip out"
            )
        self._gammas, at, clipped, silent = [], 0, 0, []
        for attention in self._attention:
            mine = seen[at : at + attention.queries]
            at += attention.queries
            gammas = [min(1.0, self._threshold / s) if s > 0 else 1.0 for s in mine]
            clipped += sum(gamma < 1.0 for gamma in gammas)
            shared = attention.queries // attention.keys
            self._gammas.append([min(gammas[k * shared : (k + 1) * shared]) for k in range(attention.keys)])
            if all(s == -math.inf for s in mine):
                silent.append(attention.path)
        self.seen = {**self.seen, "largest_logit": max(seen), "clipped_heads": clipped if self._clips else 0}
        if silent and not self._warned and dist.get_rank(group) == 0:
            self._warned = True
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            warn(
                f"qk_clip: {silent[0]}{more} reported no queries and keys and is not clipped; {_CALL_US}", stacklevel=4
            )

    def apply(self, requests: list[layout.Request]) -> None:
        """Multiplies the heads' rows in the shards that were just stepped, and in their low-precision weights."""
        if not self._clips:
            return
        for request in requests:
            for place in self._places[request.sub_group.index]:
                self._scale(place, request)

    def _scale(self, place: _Place, request: layout.Request) -> None:
        gammas, outputs = self._gammas[place.attention], place.outputs
        shared = len(outputs.begins) // len(gammas)  # heads of this part that go with one of keys
        for head, begin in enumerate(outputs.begins):
            gamma = gammas[head // shared]
            if gamma < 1.0:
                factor = gamma ** {"q": self._alpha, "k": 1.0 - self._alpha, "rope": 1.0}[outputs.part]
                masters = _views(place, begin, request.sub_group.flat.data)
                for weights in masters:
                    weights.mul_(factor)
                if request.low_precision is not None:
                    for weights, low in zip(masters, _views(place, begin, request.low_precision)):
                        low.copy_(weights)


def _views(place: _Place, begin: int, flat: torch.Tensor) -> list[torch.Tensor]:
    """What of the outputs [begin, begin + length) lies in the shard, as views of it."""
    first, last = place.span
    length = place.outputs.length
    here = flat[place.offset : place.offset + last - first]
    if place.width:
        low, high = max(begin * place.width, first), min((begin + length) * place.width, last)
        return [here[low - first : high - first]] if low < high else []
    columns, views = place.columns, []
    full = -(-first // columns), last // columns  # rows that are here whole
    for row in {first // columns, last // columns}:
        if full[0] <= row < full[1]:
            continue
        low, high = max(row * columns + begin, first), min(row * columns + begin + length, last)
        if low < high:
            views.append(here[low - first : high - first])
    if full[0] < full[1]:
        whole = here[full[0] * columns - first : full[1] * columns - first].view(-1, columns)
        views.append(whole[:, begin : begin + length])
    return views


def _place(zero3, attention: int, outputs: HeadOutputs, name: str, param) -> _Place:
    start, real, offset = layout.local_place(zero3, param)
    shape = true_shape(param)
    by_columns = name == "weight" and outputs.transposed
    width = 0 if by_columns else math.prod(shape[1:])
    return _Place(attention, outputs, (start, start + real), offset, width, shape[1] if by_columns else 0)


def _checked(model: nn.Module, clips: bool) -> list[AttentionHeads]:
    """The attention of the model that is trained."""
    found = [a for a in attention_heads(model) if not clips or not _is_frozen(model, a)]
    obstacles = [a for a in found if (a.obstacle if clips else not a.queries)]
    if obstacles:
        more = f" (and {len(obstacles) - 1} more)" if len(obstacles) > 1 else ""
        raise ValueError(
            f"qk_clip: {obstacles[0].path}{more}: {obstacles[0].obstacle}; leave qk_clip out"
            + (', or only watch the logits: "log_max_attention_logit": true' if clips and obstacles[0].queries else "")
        )
    if not found:
        raise ValueError(
            f"qk_clip: the model has no module with projections of queries and keys that are known (q_proj and k_proj, query "
            f"and key, or a fused one of transformers); {_CALL_US}"
        )
    return found


def _is_frozen(model: nn.Module, attention: AttentionHeads) -> bool:
    """Whether nothing of its queries and keys is trained."""
    projections = {model.get_submodule(o.projection) for o in attention.outputs}
    return not any(p.requires_grad for projection in projections for p in projection.parameters())
