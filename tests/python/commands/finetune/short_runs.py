"""A run that saves three times, for tests that disturb it, and what must follow."""

from __future__ import annotations

from pathlib import Path

from tests.python.commands.finetune.test_runs import losses, weights

STEPS, EVERY = 12, 4


def options(model: Path, text_file: Path, out: Path):
    sizes = ["--ranks", 2, "--batch", 4, "--seq-len", 16, "--steps", STEPS, "--save-every", EVERY]
    # So that no collective of DeepSpeed's at the end of a save happens to be a barrier.
    given = ["bf16.enabled=false", "zero_optimization.stage3_param_persistence_threshold=0"]
    kept = ["--keep-checkpoints", 1]
    return [
        "--model",
        model,
        "--data",
        text_file,
        "--out",
        out,
        *sizes,
        *kept,
        *(w for v in given for w in ("--set", v)),
    ]


def expect_to_go_on(command, out: Path, undisturbed: Path) -> None:
    status, output = command("--resume", "--out", out).finish()
    assert status == 0, output
    assert weights(out) == weights(undisturbed) and losses(out) == losses(undisturbed)
