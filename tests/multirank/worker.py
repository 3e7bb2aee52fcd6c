"""Runs rows on every rank of one launch; its arguments are ROWS.json and OUT.jsonl.

ROWS.json: a list of {"id", "kind", "arguments"}. Rank 0 writes one JSON line per row to OUT.jsonl as it is done.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from typing import Callable

from tests.multirank import (
    captured,
    checkpoint_rows,
    fused_rows,
    group_rows,
    host_rows,
    parity,
    reshard_rows,
    rows,
    stage_rows,
    world,
)
from tests.multirank.cases import Case


def run_row(kind: str, arguments: dict) -> dict:
    if kind in ("parity", "captured"):
        compare = {"parity": parity, "captured": captured}[kind]
        return compare.run(Case(**{**arguments, "frozen": tuple(arguments["frozen"])}))
    module = next(
        m
        for m in (rows, checkpoint_rows, host_rows, fused_rows, group_rows, reshard_rows, stage_rows)
        if hasattr(m, kind)
    )
    return getattr(module, kind)(**arguments)


def main(run: Callable[[str, dict], dict] = run_row) -> None:
    """run: what does a row, by its kind and arguments."""
    import torch.distributed as dist

    wanted = json.loads(open(sys.argv[1]).read())
    world.start()
    import deepspeed

    with open(sys.argv[2], "a") as out:
        for row in wanted:
            started = time.monotonic()
            try:
                result = run(row["kind"], row["arguments"])
            except Exception:
                result = {"failed": traceback.format_exc()}
                print(f'row "{row["id"]}" on rank {dist.get_rank()}:\n{result["failed"]}', file=sys.stderr, flush=True)
            if dist.get_rank() == 0:
                line = {
                    "id": row["id"],
                    "seconds": round(time.monotonic() - started, 2),
                    "deepspeed": deepspeed.__version__,
                    **result,
                }
                out.write(json.dumps(line) + "\n")
                out.flush()
            gc.collect()
            gc.freeze()  # DeepSpeed's engines are never freed: those of all rows before would be looked at each time
    dist.barrier()
    dist.destroy_process_group()
