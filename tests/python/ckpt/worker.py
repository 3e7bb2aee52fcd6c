"""Runs rows of rank_rows.py on every rank of one launch, see tests/multirank/worker.py."""

from tests.python.ckpt import rank_rows
from tests.multirank import worker


def run_row(kind: str, arguments: dict) -> dict:
    return getattr(rank_rows, kind)(**arguments)


def main() -> None:
    worker.main(run_row)
