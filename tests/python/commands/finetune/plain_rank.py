"""A rank of a script of a user that trains a small stack of layers, 100 steps: prints a line after each.

`plain_rank.py SECONDS`: stage_timeout_s.
"""

from __future__ import annotations

import sys

WIDTH, LAYERS, STEPS = 256, 4, 100


def main(timeout_s: float) -> None:
    import deepspeed
    import deepspeed.ops
    import torch
    import zeromuon

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it is for the ranks of one host
    zeromuon.register()
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "ZeroMuon", "params": {"lr": 1e-3, "stage_timeout_s": timeout_s}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    }
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    for step in range(STEPS):
        engine.backward(engine(torch.ones(4, WIDTH)).square().mean())
        engine.step()
        print(f"step {step}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
