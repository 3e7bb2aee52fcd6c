"""One process that starts its process group again on the same store, after a step whose group was aborted."""

from __future__ import annotations

import os

from small_engine import small_engine, step


def stepped(engine) -> str:
    """What the step raises; "": nothing."""
    try:
        step(engine)
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    import deepspeed
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    for limit_s in (0.001, 600.0):
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        engine = small_engine(width=1024, stage_timeout_s=limit_s)
        print(f"limit {limit_s:g}: {stepped(engine) or 'stepped'}", flush=True)
        engine.destroy()
        deepspeed.comm.destroy_process_group()  # torch's, and what DeepSpeed remembers of it


if __name__ == "__main__":
    main()
