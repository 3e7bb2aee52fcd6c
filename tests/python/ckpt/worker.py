"""Runs rows of rank_rows.py on every rank of one launch, see tests/multirank/worker.py."""

from tests.python.ckpt import rank_rows
from tests.multirank.worker import main


def run_row(kind: str, arguments: dict) -> dict:
    return getattr(rank_rows, kind)(**arguments)


if __name__ == "__main__":
    main(run_row)
