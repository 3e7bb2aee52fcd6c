"""Measures rows of `zeromuon compare`, ours, on every rank of one launch, see tests/multirank/worker.py."""

from tests.multirank import worker
from zeromuon.commands.compare import child, kit, launch, training
from zeromuon.commands.compare.rows import OURS


def run_row(kind: str, arguments: dict) -> dict:
    training.spoil(arguments["spoil"])
    return launch.choose(kit.on_all_ranks(child.result_of(kind, OURS)), True, "")


def main() -> None:
    worker.main(run_row)
