"""One of two ranks, each on a kernel of its own as far as it can see; their hosts have one name. Prints what binding says.

`hosts_of_one_name.py MEMINFO`: what this machine tells of its memory while the optimizer is bound.
"""

from __future__ import annotations

import os
import subprocess
import sys


def engine_of_one_matrix(width: int):
    import deepspeed
    import deepspeed.ops
    import torch
    import zeromuon

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zeromuon.register()
    deepspeed.init_distributed("gloo")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "ZeroMuon", "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    }
    model = torch.nn.Linear(width, width, bias=False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    return engine


def main(memory: str) -> None:
    import zeromuon

    engine = engine_of_one_matrix(2048)
    subprocess.run(["mount", "--bind", memory, "/proc/meminfo"], check=True)
    try:
        zeromuon.attach(engine)
        said = "bound"
    except (MemoryError, ValueError) as error:
        said = str(error)
    print(f"rank {os.environ['RANK']}: {said}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
