"""Measures rows of `zeromuon compare`, ours, on every rank of one launch, see tests/multirank/launch.py."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch.distributed as dist

    from zeromuon.commands.compare import child, training
    from zeromuon.commands.compare.rows import OURS

    with open(sys.argv[1]) as file:
        wanted = json.load(file)
    training.start()
    with open(sys.argv[2], "a") as out:
        for row in wanted:
            training.spoil(row["arguments"]["spoil"])
            result = child.result_of(row["kind"], OURS)
            if dist.get_rank() == 0:
                out.write(json.dumps({"id": row["id"], **result}) + "\n")
                out.flush()
    dist.barrier()
    dist.destroy_process_group()
