"""Small checkpoints for the tests of the command: a state dict, and ZeRO-3 folders laid out as DeepSpeed lays them out."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from pathlib import Path

import torch

TAG = "step7"
STEP = 7
BETAS = (0.9, 0.99)
LR = 1e-3
MUON = ("layers.0.w", "layers.1.w")
# Two sub-groups of one parameter group; sizes that no number of ranks divides.
SHAPES = [{"emb": (5, 3), "layers.0.w": (4, 2)}, {"layers.1.w": (3, 3), "bias": (1,)}]


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Name -> fp32 tensor of every trained parameter."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for group in SHAPES for name, shape in group.items()}


def second_moments(seed: int = 2) -> dict[str, torch.Tensor]:
    return {name: value.abs() for name, value in weights(seed).items()}


def zero3(folder: Path, ranks: int = 2, tag: str = TAG) -> Path:
    """An AdamW checkpoint of `ranks` ranks: weights(0), exp_avg weights(1), exp_avg_sq second_moments(2); a frozen
    weight, a buffer and a tied head. Padding is NaN. Returns `folder`."""
    target = folder / tag
    target.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    for rank in range(ranks):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(_model_states(ranks, rank), target / f"{name}_model_states.pt")
        torch.save(_optim_states(ranks, rank), target / f"{name}_optim_states.pt")
    return folder


def _model_states(ranks: int, rank: int) -> dict:
    empty = {name: torch.empty(0) for group in SHAPES for name in group}
    return {
        "module": OrderedDict({**empty, "head": torch.empty(0), "frozen": torch.empty(0), "buffer": torch.arange(3.0)}),
        "buffer_names": ["buffer"],
        "param_shapes": [OrderedDict((n, torch.Size(s)) for n, s in group.items()) for group in SHAPES],
        "frozen_param_shapes": OrderedDict(frozen=torch.Size((7,))),
        "frozen_param_fragments": OrderedDict(frozen=_shard(torch.arange(7.0), ranks, rank)),
        "shared_params": {"head": "emb"},
        "lr_scheduler": None,
        "global_steps": STEP,
        "dp_world_size": ranks,
        "ds_version": "0.19.8",
        "ds_config": {"zero_optimization": {"stage": 3, "sub_group_size": 10}},
    }


def _optim_states(ranks: int, rank: int) -> dict:
    def flat(values: dict, group: dict) -> torch.Tensor:
        return torch.cat([_shard(values[name], ranks, rank) for name in group])

    states = {
        i: {
            "step": torch.tensor(float(STEP)),
            "exp_avg": flat(weights(1), group),
            "exp_avg_sq": flat(second_moments(), group),
        }
        for i, group in enumerate(SHAPES)
    }
    groups = [{"lr": LR, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0, "params": list(range(len(SHAPES)))}]
    return {
        "optimizer_state_dict": {
            "zero_stage": 3,
            "partition_count": ranks,
            "optimizer_state_dict": {"state": states, "param_groups": groups},
            "fp32_flat_groups": [flat(weights(), group) for group in SHAPES],
        }
    }


def _shard(values: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    chunk = -(-values.numel() // ranks)
    padded = torch.full((chunk * ranks,), float("nan"))
    padded[: values.numel()] = values.flatten()
    return padded[rank * chunk : (rank + 1) * chunk].clone()


def roles_file(path: Path, **changes: str) -> Path:
    """As param_groups(model).save(path) writes it; changes: name -> role."""
    roles = {name: "muon" if name in MUON else "adamw" for group in SHAPES for name in group}
    listed = [{"name": name, "role": role} for name, role in {**roles, **changes}.items()]
    path.write_text(json.dumps({"format": 1, "parameters": listed}))
    return path


def zeros(path: Path, tensors: int, bytes_each: int) -> Path:
    """A safetensors file of fp32 zeros that takes no room on disk."""
    header = {
        f"t{i:03d}": {
            "dtype": "F32",
            "shape": [bytes_each // 4],
            "data_offsets": [i * bytes_each, (i + 1) * bytes_each],
        }
        for i in range(tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * bytes_each)
    return path
