"""A rank of a script of a user that trains a small stack of layers, 100 steps: prints a line after each.

`plain_rank.py SECONDS`: stage_timeout_s.
"""

from __future__ import annotations

import sys

from small_engine import small_engine, step

STEPS = 100


def main(timeout_s: float) -> None:
    engine = small_engine(width=256, layers=4, stage_timeout_s=timeout_s)
    for number in range(STEPS):
        step(engine)
        print(f"step {number}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
