"""Rows in 16 bits: the stored momentum against one that is summed in fp32 from the same gradients.

The gradients are the shards that ZeRO-3 has reduced, taken on every rank when either system is about to read them: before
DeepSpeed's Muon update, and before ours are unscaled and clipped. The momentum is element-wise, so a rank compares what
it holds. The fp32 one divides each gradient by the loss scale that its own loss was multiplied with.
"""

from __future__ import annotations

import torch

from . import kit, training
from .rows import OURS
from .training import BETA, batches, build_engine, config_for
from .work import before


class _Shadow:
    """fp32 momenta beside the stored ones, of this rank's elements. scales: the loss scales that were seen."""

    def __init__(self, engine, system: str):
        self.engine, self.system, self.zero3 = engine, system, engine.optimizer
        self.scales: list[float] = []
        self._params = training.matrices_of(engine)
        self._momenta = {n: torch.zeros(training.shard_numel(p)) for n, p in self._params.items()}
        self._places = {n: training.sub_group_of(self.zero3, p) for n, p in self._params.items()}
        before(engine, "backward", lambda *_, **__: self.scales.append(float(self.zero3.loss_scale)))
        if system == OURS:
            before(self.zero3, "unscale_and_clip_grads", lambda sub_group, _: self._advance(self._names_in(sub_group)))
        else:
            before(self.zero3, "_apply_muon_to_accumulated_grads", lambda: self._advance(list(self._params)))

    def _names_in(self, sub_group: int) -> list[str]:
        return [name for name, place in self._places.items() if place == sub_group]

    def _advance(self, names: list[str]) -> None:
        for name in names:
            gradient = self._reduced_gradient(name).float() / self.scales[-1]
            self._momenta[name] = BETA * self._momenta[name] + (1 - BETA) * gradient

    def _reduced_gradient(self, name: str) -> torch.Tensor:
        param, sub_group = self._params[name], self._places[name]
        if self.system == OURS or self.zero3.offload_optimizer:
            _, start, _ = self.zero3.grad_position[self.zero3.get_param_id(param)]
            whole = self.zero3.fp32_partitioned_groups_flat[sub_group].grad[start:]
        else:
            index = next(i for i, p in enumerate(self.zero3.fp16_groups[sub_group]) if p is param)
            whole = self.zero3.averaged_gradients[sub_group][index].reshape(-1)
        return whole[: training.shard_numel(param)].detach()

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(stored, fp32) of every whole matrix."""
        stored = training.momenta_of(self.engine, self.system)
        ranks = kit.on_all_ranks(self._momenta)
        pairs = [(stored[n], torch.cat([rank[n] for rank in ranks])) for n in stored]
        if not all(bool((shadow != 0).any()) for _, shadow in pairs):
            raise training.NotMeasurable("a matrix got no gradient")
        return pairs


def _trained(system: str, steps: int, zero: dict | None = None, factor: float = 1.0, **sections) -> _Shadow:
    engine = build_engine(config_for(system, zero, **sections))
    shadow = _Shadow(engine, system)
    training.train(engine, batches(steps), factor)
    return shadow


def bf16_momentum(system: str) -> float:
    """Of the matrix where the relative difference (Frobenius) is largest."""
    pairs = _trained(system, 30, bf16={"enabled": True}).pairs()
    return max(((stored - shadow).norm() / shadow.norm()).item() for stored, shadow in pairs)


def _fp16(power: int, **given) -> dict:
    return {"enabled": True, "initial_scale_power": power, "hysteresis": 1, **given}


def fp16_underflow(system: str) -> float:
    """Elements that are zero where the fp32 momentum is not, of those. The loss is multiplied by 1e-6 and by a scale of
    65536: gradients survive in fp16, and must survive in the momentum."""
    pairs = _trained(system, 6, {"offload_optimizer": {"device": "cpu"}}, factor=1e-6, fp16=_fp16(16)).pairs()
    lost = sum(int(((stored == 0) & (shadow != 0)).sum()) for stored, shadow in pairs)
    return lost / sum(int((shadow != 0).sum()) for _, shadow in pairs)


def fp16_scale(system: str) -> float:
    """Of the matrix where the angle is largest. The loss scale doubles three times in eight steps."""
    shadow = _trained(system, 8, fp16=_fp16(6, loss_scale_window=2))
    if max(shadow.scales) != 8 * min(shadow.scales):
        raise training.NotMeasurable(f"the loss scale took the values {sorted(set(shadow.scales))}")
    return max(1 - torch.cosine_similarity(a.double(), b.double(), dim=0).item() for a, b in shadow.pairs())
