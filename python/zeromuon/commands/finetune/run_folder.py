"""The files of one run: settings, configuration, metrics, checkpoints, curve, model, and how it stands."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

from ...base import durable

STATES = RUNNING, INTERRUPTED, FINISHED, FAILED = "running", "interrupted", "finished", "failed"
DEFAULT_PARENT = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Names in the folder `path`; the parent and rank 0 write it, every rank reads it."""

    path: Path

    settings = property(lambda self: self.path / "run.json")
    config = property(lambda self: self.path / "ds_config.json")
    status_file = property(lambda self: self.path / "status.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    curve = property(lambda self: self.path / "loss.png")
    result = property(lambda self: self.path / "result.json")
    model = property(lambda self: self.path / "model")
    checkpoints = property(lambda self: self.path / "checkpoints")
    log = property(lambda self: self.path / "ranks.log")
    stop_request = property(lambda self: self.path / "stop")
    started_by = property(lambda self: self.path / "torchrun.json")  # where that starts the ranks: which ones
    inputs = property(lambda self: self.path / "inputs.json")  # what text and configuration the run began with

    def set_status(self, state: str, step: int) -> None:
        durable.write_text(self.status_file, json.dumps({"state": state, "step": step}) + "\n")

    def status(self) -> dict:
        """{"state", "step"}; a folder without the file, or with one that is damaged, has not begun."""
        found = durable.read_json(self.status_file)
        if isinstance(found, dict) and found.get("state") in STATES and type(found.get("step")) is int:
            return found
        return {"state": FAILED, "step": 0}

    def append_metric(self, entry: dict) -> None:
        with open(self.metrics, "a") as handle:
            handle.write(json.dumps(entry) + "\n")

    def read_metrics(self) -> list[dict]:
        """One entry a step and one of each held-out loss; lines that were cut or are none are left out."""
        found = []
        if self.metrics.exists():
            for line in self.metrics.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    found.append(json.loads(line))
        return [entry for entry in found if _is_metric(entry)]

    def drop_metrics_after(self, step: int) -> None:
        """Forgets the steps that a checkpoint of `step` does not contain, and the loss at the end of a run."""
        kept = [e for e in self.read_metrics() if e["step"] <= step and ("loss" in e or e["step"] == 0)]
        durable.write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))


def _is_metric(entry) -> bool:
    """A step's entry, or one with a held-out loss: with the fields that are read again."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    numbers = [entry["loss"] if "loss" in entry else entry.get("held_out_loss")]
    if "seconds" in entry:
        if not isinstance(entry["seconds"], dict):
            return False
        numbers += [entry.get("optimizer_wall_seconds"), *entry["seconds"].values()]
    return all(isinstance(number, (int, float)) for number in numbers)


def new_folder(chosen: str | None, model_name: str) -> RunFolder:
    """A folder that does not hold a run yet; it is not created here.

    chosen: --out; without it runs/<model>-<time>. Raises ValueError if there is something at that path.
    """
    if chosen:
        folder = RunFolder(Path(chosen).absolute())
        require_unused(folder)
        return folder
    path = (DEFAULT_PARENT / f"{model_name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return RunFolder(next(free for free in itertools.chain([path], others) if not free.exists()))


def require_unused(folder: RunFolder) -> None:
    """Raises ValueError unless nothing or an empty folder is there."""
    path = folder.path
    if folder.settings.exists():
        found = f"found one ({folder.status()['state']}); add --resume to go on with it, or choose another folder"
        raise ValueError(f"--out {path}: expected no run there, {found}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--out {path}: expected a new or empty folder, found something there; choose another")


def unfinished_folder(chosen: str | None) -> RunFolder:
    """The run to go on with: --out, or the newest one under runs/ that is not finished. Raises ValueError if there is none."""
    if not chosen:
        return _newest_unfinished()
    folder = RunFolder(Path(chosen).absolute())
    whose, status = f"--resume --out {chosen}", folder.status()
    if not folder.settings.exists():
        raise ValueError(
            f"{whose}: expected the folder of a run, found no run.json there; name another, or leave --resume out and "
            f"name a new one"
        )
    if status["state"] == FINISHED:
        raise ValueError(f"{whose}: expected an unfinished run, it finished at step {status['step']}; start a new one")
    return folder


def _newest_unfinished() -> RunFolder:
    folders = [RunFolder(file.parent.absolute()) for file in DEFAULT_PARENT.glob("*/run.json")]
    folders = [folder for folder in folders if folder.status()["state"] != FINISHED]
    if not folders:
        where = f"under {DEFAULT_PARENT}/"
        raise ValueError(f"--resume: expected an unfinished run {where}, found none; name its folder with --out")
    return max(folders, key=lambda folder: folder.settings.stat().st_mtime)
