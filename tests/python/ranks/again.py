"""One process that starts its process group again on the same store, after a step whose group was aborted."""

from __future__ import annotations

import os


def engine_with(limit_s: float):
    import deepspeed
    import torch
    import zeromuon

    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "ZeroMuon", "params": {"lr": 1e-3, "stage_timeout_s": limit_s}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    }
    model = torch.nn.Linear(1024, 1024, bias=False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    zeromuon.attach(engine)
    return engine


def stepped(engine) -> str:
    """What the step raises; "": nothing."""
    import torch

    engine.backward(engine(torch.ones(1, 1024)).square().mean())
    try:
        engine.step()
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    import deepspeed
    import torch.distributed as dist
    import zeromuon

    zeromuon.register()
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    for limit_s in (0.001, 600.0):
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        engine = engine_with(limit_s)
        print(f"limit {limit_s:g}: {stepped(engine) or 'stepped'}", flush=True)
        engine.destroy()
        deepspeed.comm.destroy_process_group()  # torch's, and what DeepSpeed remembers of it


if __name__ == "__main__":
    main()
