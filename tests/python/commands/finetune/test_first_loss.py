"""The first held-out loss of a run that goes on: rank 0 reads it, and no rank goes another way than the others."""

from __future__ import annotations

import pytest

from zeromuon.commands.finetune import worker
from zeromuon.commands.finetune.run_folder import RunFolder

LOSS = 3.165663921131807


class Together:
    """Sums over ranks whose shares are known: rank 0's is what it would send, the others send zeros."""

    def __init__(self, rank: int, share_of_rank_0: list[float]):
        self.rank, self._others = rank, [0.0, 0.0] if rank == 0 else share_of_rank_0

    def sum(self, values: list[float]) -> list[float]:
        return [a + b for a, b in zip(values, self._others, strict=True)]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_gets_what_rank_0_reads(tmp_path, rank):
    folder = RunFolder(tmp_path)
    folder.append_metric({"step": 0, "held_out_loss": LOSS})
    folder.append_metric({"step": 1, "loss": 3.0})
    assert worker.saved_first_loss(folder, Together(rank, [1.0, LOSS])) == LOSS


def test_a_rank_that_finds_no_metrics_while_they_are_rewritten_follows_rank_0(tmp_path):
    assert worker.saved_first_loss(RunFolder(tmp_path), Together(1, [1.0, LOSS])) == LOSS


def test_a_rank_that_finds_metrics_which_rank_0_dropped_follows_rank_0(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metric({"step": 0, "held_out_loss": LOSS})
    assert worker.saved_first_loss(folder, Together(1, [0.0, 0.0])) is None


def test_dropping_metrics_leaves_the_file_whole_and_nothing_beside_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metric({"step": 0, "held_out_loss": LOSS})
    for step in range(1, 4):
        folder.append_metric({"step": step, "loss": LOSS})
    folder.drop_metrics_after(1)
    assert [entry["step"] for entry in folder.read_metrics()] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_goes_on_after_its_last_step_has_one_line_a_step(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metric({"step": 0, "held_out_loss": LOSS})
    folder.append_metric({"step": 1, "loss": LOSS})
    folder.append_metric({"step": 1, "held_out_loss": LOSS})
    with open(folder.metrics, "a") as metrics:
        metrics.write('{"step": 2, "seconds": {"forward": 1}')  # cut, at a bracket
    folder.drop_metrics_after(1)
    assert folder.read_metrics() == [{"step": 0, "held_out_loss": LOSS}, {"step": 1, "loss": LOSS}]


class GoingOn:
    """A trainer of a run that goes on and whose metrics are lost."""

    step = 8

    def __init__(self, folder):
        self.folder, self.ranks = folder, Together(0, [0.0, 0.0])


def test_the_first_loss_of_a_run_that_lost_its_metrics_is_unknown(tmp_path):
    assert worker.first_loss(GoingOn(RunFolder(tmp_path)), None, print) is None
