"""Rows in 16 bits: the stored momentum against one that is summed in fp32 from the same gradients.

Gradients are taken where each system reads them: from DeepSpeed's muon_update before it mixes them in, and from our
flat shard before it is unscaled. Momentum is element-wise, so a rank compares what it holds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from . import training
from .rows import OURS
from .training import batches, build_engine, config_for

BETA = 0.95


class _Shadow:
    """fp32 momenta beside the stored ones. pairs: (stored, shadow) of every matrix part on this rank."""

    def __init__(self, engine, system: str):
        self.zero3, self.momenta = engine.optimizer, {}
        (self._watch_ours if system == OURS else self._watch_deepspeed)()

    def _advance(self, key, gradient: torch.Tensor) -> None:
        mean = self.momenta.get(key, torch.zeros(gradient.numel()))
        self.momenta[key] = BETA * mean + (1 - BETA) * gradient.detach().float().reshape(-1)

    # -- ours: each parameter's part of the flat shard, scaled by the loss scale of its step

    def _watch_ours(self) -> None:
        zero3, unscale = self.zero3, self.zero3.unscale_and_clip_grads
        self._parts = {}

        def advancing(sub_group, total_norm):
            for p in zero3.fp16_groups[sub_group] if len(zero3.fp16_groups[sub_group][0].ds_shape) >= 2 else []:
                _, at, chunk = zero3.grad_position[p.ds_id]
                real = min(max(p.ds_numel - dist.get_rank() * chunk, 0), chunk)
                flat = zero3.fp32_partitioned_groups_flat[sub_group]
                self._advance(p.ds_id, flat.grad[at : at + real] / zero3.loss_scale)
                self._parts[p.ds_id] = (flat, at, real)
            return unscale(sub_group, total_norm)

        zero3.unscale_and_clip_grads = advancing

    # -- DeepSpeed: whole matrices, in the order in which this rank updates them in a step

    def _watch_deepspeed(self) -> None:
        from deepspeed.runtime.zero.muon import original_muon

        zero3, update, apply = self.zero3, original_muon.muon_update, self.zero3._apply_muon_to_accumulated_grads
        self._stored, self._calls = {}, 0

        def advancing(grad, momentum, *args, **keywords):
            if torch.isfinite(grad).all():
                self._advance(self._calls, grad.float() / zero3.loss_scale)
            done = update(grad, momentum, *args, **keywords)
            self._stored[self._calls] = momentum.detach().clone()
            self._calls += 1
            return done

        def counted_apply():
            self._calls = 0
            return apply()

        original_muon.muon_update, zero3._apply_muon_to_accumulated_grads = advancing, counted_apply

    def pairs(self):
        for key, shadow in self.momenta.items():
            if shadow.numel() == 0:
                continue
            if hasattr(self, "_stored"):
                yield self._stored[key].float().reshape(-1), shadow
            else:
                flat, at, real = self._parts[key]
                yield self.zero3.optimizer.state[flat]["exp_avg"][at : at + real], shadow


def _trained(system: str, steps: int, zero: dict | None = None, factor: float = 1.0, **sections) -> _Shadow:
    engine = build_engine(config_for(system, zero, **sections))
    shadow = _Shadow(engine, system)
    training.train(engine, batches(steps), factor)
    return shadow


def bf16_momentum(system: str) -> float:
    shadow = _trained(system, 30, bf16={"enabled": True})
    return training.largest(max(((a - b).norm() / b.norm()).item() for a, b in shadow.pairs()))


def _fp16(power: int, **given) -> dict:
    return {"enabled": True, "initial_scale_power": power, "hysteresis": 1, **given}


def fp16_underflow(system: str) -> float:
    """Losses of 1e-6: gradients survive in fp16 under their scale, and must survive in the momentum."""
    shadow = _trained(system, 6, {"offload_optimizer": {"device": "cpu"}}, factor=1e-6, fp16=_fp16(16))
    found = [(int(((a == 0) & (b != 0)).sum()), int((b != 0).sum())) for a, b in shadow.pairs()]
    lost, there = map(sum, zip(*found))
    return training.largest(lost / there)


def fp16_scale(system: str) -> float:
    """A loss scale that doubles after every second step."""
    shadow = _trained(system, 8, fp16=_fp16(6, loss_scale_window=2))
    return training.largest(max(1 - torch.cosine_similarity(a.double(), b.double(), dim=0).item()
                                for a, b in shadow.pairs()))
