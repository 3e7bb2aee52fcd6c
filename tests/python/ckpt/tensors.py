"""Comparisons of tensors by name, bit for bit, and of what DeepSpeed's universal files hold."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.python.ckpt import zoo


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, data types, shapes and bits."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        other = found[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(other), bits(tensor)), f"{name} differs"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_models(found: dict, expected: dict) -> None:
    """Weights, states, frozen parameters and buffers of two live models."""
    assert_same(found["weights"], expected["weights"])
    assert_same(found["low"], expected["low"])
    assert_same(found["kept"], expected["kept"])
    assert_same(flat_states(found), flat_states(expected))


def settled(live: dict) -> dict:
    """A model of ours right after a universal load, without the dense zeros that it drops when it binds."""
    states = {name: dict(parts) for name, parts in live["states"].items()}
    for name in zoo.MUON:
        assert not states[name].pop("exp_avg_sq", torch.zeros(1)).any()
    return {**live, "states": states}


def flat_states(live: dict) -> dict[str, torch.Tensor]:
    return {f"{name}: {part}": tensor for name, parts in live["states"].items() for part, tensor in parts.items()}


def whole_model(live: dict, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """What an export of a live model holds: trained weights in dtype (None: fp32), the rest in its own."""
    return {**{name: tensor.to(dtype or torch.float32) for name, tensor in live["weights"].items()}, **live["kept"]}


def universal_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """ "name: part" -> tensor, of every file of a universal checkpoint's parameters."""
    return {f"{path.parent.name}: {path.stem}": torch.load(path) for path in sorted((folder / "zero").glob("*/*.pt"))}


def expected_universal(live: dict) -> dict[str, torch.Tensor]:
    """The same for a live model: the momentum is in exp_avg, what is missing is zeros."""
    out = {}
    for name, weights in live["weights"].items():
        states = live["states"][name]
        first = states.get("exp_avg", states.get("momentum_buffer"))
        second = states.get("exp_avg_sq", torch.zeros_like(weights))
        out[f"{name}: fp32"] = weights.reshape(-1)
        out[f"{name}: exp_avg"], out[f"{name}: exp_avg_sq"] = first.reshape(-1), second.reshape(-1)
    return out


def with_aliases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, **{alias: tensors[name] for alias, name in zoo.ALIASES.items()}}
