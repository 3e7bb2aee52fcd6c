"""A rank that writes the checkpoint for `zeromuon bench ckpt`; started by source.py; rank 0 tells the number of parameters.

usage: FOLDER WIDTH LAYERS
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from ....ranks.connect import connect
from ....ranks.channel import tell
from ....ranks.leave import leave
from ..step.contenders import Size, build_model
from .source import TAG

# torch_adam: without it DeepSpeed compiles an operator for minutes first.
_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    "zero_optimization": {"stage": 3},
}


def main(folder: str, width: int, layers: int) -> int:
    import deepspeed

    rank = connect().rank
    model = build_model(Size(width, layers))
    numel = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=_CONFIG)
    torch.manual_seed(rank)
    engine.backward(engine(torch.randn(1, width)).square().mean())
    engine.step()
    engine.save_checkpoint(folder, tag=TAG)
    if rank == 0:
        tell(numel=numel)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
