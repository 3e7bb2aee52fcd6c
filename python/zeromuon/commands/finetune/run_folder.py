"""The files of one run: settings, configuration, metrics, checkpoints, curve, model, and how it stands."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ...base.whole_file import whole_file

RUNNING, INTERRUPTED, FINISHED, FAILED = "running", "interrupted", "finished", "failed"
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

    def set_status(self, state: str, step: int) -> None:
        self.status_file.write_text(json.dumps({"state": state, "step": step}) + "\n")

    def status(self) -> dict:
        """{"state", "step"}; a folder without the file has not begun."""
        try:
            return json.loads(self.status_file.read_text())
        except (OSError, ValueError):
            return {"state": FAILED, "step": 0}

    def append_metric(self, entry: dict) -> None:
        with open(self.metrics, "a") as handle:
            handle.write(json.dumps(entry) + "\n")

    def read_metrics(self) -> list[dict]:
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]

    def drop_metrics_after(self, step: int) -> None:
        """Forgets the steps that a checkpoint of `step` does not contain."""
        kept = [entry for entry in self.read_metrics() if entry["step"] <= step]
        with whole_file(self.metrics) as part:
            part.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def drop_old_checkpoints(self, keep: int) -> None:
        """Removes all but the `keep` newest checkpoint folders."""
        folders = sorted(self.checkpoints.glob("step*"), key=lambda folder: (step_of(folder), folder.stat().st_mtime))
        for folder in folders[:-keep]:
            shutil.rmtree(folder)

    def newest_checkpoint(self) -> Path | None:
        """The folder that `latest` names; None if no checkpoint was completed."""
        latest = self.checkpoints / "latest"
        return self.checkpoints / latest.read_text().strip() if latest.exists() else None


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint: 40 for step40 and for step40-3ranks; -1 if it has none."""
    found = re.match(r"step(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def ranks_of(checkpoint: Path) -> int:
    """How many ranks wrote the checkpoint: its files of model states."""
    return len(list(checkpoint.glob("zero_pp_rank_*_mp_rank_00_model_states.pt")))


def new_folder(chosen: str | None, model_name: str) -> RunFolder:
    """A folder that does not hold a run yet; it is not created here.

    chosen: --out; without it runs/<model>-<time>. Raises ValueError if there is something at that path.
    """
    path = Path(chosen) if chosen else DEFAULT_PARENT / f"{model_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder(path.absolute())
    if folder.settings.exists():
        found = f"found one ({folder.status()['state']}); add --resume to go on with it, or choose another folder"
        raise ValueError(f"--out {path}: expected no run there, {found}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--out {path}: expected a new or empty folder, found something there; choose another")
    return folder


def unfinished_folder(chosen: str | None) -> RunFolder:
    """The run to go on with: --out, or the newest one under runs/ that is not finished. Raises ValueError if there is none."""
    if not chosen:
        return _newest_unfinished()
    folder = RunFolder(Path(chosen).absolute())
    whose, status = f"--resume --out {chosen}", folder.status()
    if not folder.settings.exists():
        raise ValueError(f"{whose}: expected the folder of a run, found no run.json there; start it without --resume")
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
