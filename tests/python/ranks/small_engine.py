"""The engine of the scripts beside it, as a script of a user makes it."""

from __future__ import annotations


def small_engine(width: int = 16, layers: int = 1, **params):
    """An engine whose model is square linear layers.

    Args:
        width: of each layer, inputs and outputs.
        params: of the optimizer, besides a learning rate of 1e-3.
    """
    import deepspeed
    import deepspeed.ops
    import torch
    import zeromuon

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it is for the ranks of one host
    zeromuon.register()
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "ZeroMuon", "params": {"lr": 1e-3, **params}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    }
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    return engine


def step(engine) -> None:
    """One, of a batch that is the same each time."""
    import torch

    width = engine.module[0].in_features
    engine.backward(engine(torch.ones(4, width)).square().mean())
    engine.step()
