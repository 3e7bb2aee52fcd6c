"""A rank that writes the checkpoint for `zeromuon bench ckpt`; started by source.py through torchrun.

usage: FOLDER WIDTH LAYERS TOLD; TOLD: JSON file that gets the number of parameters.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ....ranks.connect import connect
from ..step_contenders import Size, build_model
from .source import TAG

# torch_adam: without it DeepSpeed compiles an operator for minutes first.
_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    "zero_optimization": {"stage": 3},
}


def main(folder: str, width: int, layers: int, told: str) -> int:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    rank = connect().rank
    model = build_model(Size(width, layers))
    numel = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=_CONFIG)
    torch.manual_seed(rank)
    engine.backward(engine(torch.randn(1, width)).square().mean())
    engine.step()
    engine.save_checkpoint(folder, tag=TAG)
    if rank == 0:
        Path(told).write_text(json.dumps({"numel": numel}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
