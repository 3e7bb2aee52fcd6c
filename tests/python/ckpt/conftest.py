"""Checkpoints of real DeepSpeed for the whole session, with four launches: ranks save on 2, 3 and 1 of them and, in the
last three, resume from what the tool made of those of two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.python.ckpt.kinds import KINDS, MORE_KINDS, Kind
from tests.python.ckpt.resumes import RESUMES
from tests.python.ckpt.tool import reshard
from tests.multirank.launch import row, run_rows

OLDER = ("0.12.6", "0.5.10", "0.3.16")  # DeepSpeeds, see fixtures


@dataclass
class Saved:
    """A checkpoint that DeepSpeed saved. row: what the ranks said."""

    folder: Path
    row: dict

    @property
    def run(self) -> str:
        return str(self.folder / "run")

    def tensors(self, name: str) -> dict:
        """What the ranks wrote beside it: live.pt, next.pt, zero_to_fp32.pt."""
        return torch.load(self.folder / name)


@dataclass
class Resumed:
    """What became of a folder of the tool: its report, what the ranks said, and their models."""

    output: Path
    report: dict
    folder: Path
    row: dict

    def tensors(self, name: str) -> dict:
        return torch.load(self.folder / name)


class Launches:
    """Each launch once, when the first test wants it."""

    def __init__(self, base: Path):
        self.base = base
        self.rows: dict[str, dict] = {}  # of a launch
        self.reports: dict[str, dict | Exception] = {}

    def saved(self, world_size: int, name: str) -> Saved:
        folder = self.base / str(world_size) / name
        return Saved(folder, _good(self._launch(str(world_size))[f"save {name}"]))

    def output(self, name: str) -> tuple[Path, dict]:
        """The tool's folder and its report, without a launch of the ranks that resume from it."""
        self._make_outputs()
        report = self.reports[name]
        if isinstance(report, Exception):
            raise report
        return self.base / "outputs" / name, report

    def resumed(self, name: str) -> Resumed:
        output, report = self.output(name)
        resume = RESUMES[name]
        rows = self._launch("2 again" if resume.world_size == 2 else str(resume.world_size))
        return Resumed(output, report, self.base / "resumed" / name, _good(rows[name]))

    def _launch(self, name: str) -> dict:
        if name not in self.rows:
            world_size = int(name[0])
            if name != "2":
                self._make_outputs()
            rows = [] if name == "2 again" else self._saving(world_size)
            rows += [] if name == "2" else self._resuming(world_size)
            rows += self._consolidating() if name == "1" else []
            self.rows[name] = run_rows(world_size, rows, worker="tests.python.ckpt.worker")
        return self.rows[name]

    def _saving(self, world_size: int) -> list[dict]:
        kinds = {**KINDS, **MORE_KINDS} if world_size == 2 else KINDS
        base = self.base / str(world_size)
        rows = [
            row(f"save {name}", "save", training=kind.as_dict(), folder=str(base / name), peers=True)
            for name, kind in kinds.items()
        ]
        rows.append(row("save dcp", "save_dcp", folder=str(base / "dcp")))
        if world_size == 2:
            nvme = Kind("AdamW", offload=str(base / "swapped"))
            rows.append(row("save nvme", "save_on_nvme", training=nvme.as_dict(), folder=str(base / "nvme")))
            rows.append(
                row(
                    "save changed", "save_changed", run=str(base / "AdamW-fp32/run/saved"), folder=str(base / "changed")
                )
            )
        return rows

    def _make_outputs(self) -> None:
        if self.reports:
            return
        self._launch("2")
        for name, resume in RESUMES.items():
            folder = self.base / "outputs" / name
            try:
                self.reports[name] = resume.make(self.base / "2", self.base / "outputs", folder)
            except Exception as error:
                self.reports[name] = error

    def _resuming(self, world_size: int) -> list[dict]:
        return [
            row(
                name,
                "resume",
                training=resume.loader.as_dict(),
                run=str(self.base / "outputs" / name),
                tag=resume.tag,
                folder=str(self.base / "resumed" / name),
            )
            for name, resume in RESUMES.items()
            if resume.world_size == world_size and not isinstance(self.reports[name], Exception)
        ]

    def consolidated(self, version: str) -> dict[str, torch.Tensor]:
        """What today's zero_to_fp32 makes of an older DeepSpeed's checkpoint, resharded to three ranks."""
        _good(self._launch("1")[f"older {version}"])
        return torch.load(self.base / f"older/{version}.pt")

    def _consolidating(self) -> list[dict]:
        rows = []
        for version in OLDER:
            run = self.base / "older" / version
            reshard(str(Path(__file__).parent / f"fixtures/deepspeed-{version}"), str(run), 3)
            rows.append(row(f"older {version}", "consolidate", run=str(run), out=f"{run}.pt"))
        return rows


def _good(row: dict) -> dict:
    assert "failed" not in row, row["failed"]
    return row


@pytest.fixture(scope="session")
def launches(tmp_path_factory) -> Launches:
    return Launches(tmp_path_factory.mktemp("ckpt"))


@pytest.fixture
def saved(launches):
    """saved(world_size, name): what DeepSpeed wrote."""
    return launches.saved


@pytest.fixture
def resumed(launches):
    """resumed(name): what DeepSpeed made of a folder of the tool."""
    return launches.resumed


@pytest.fixture
def output(launches):
    """output(name): the tool's folder and its report."""
    return launches.output


@pytest.fixture
def consolidated(launches):
    """consolidated(version): today's zero_to_fp32 on an older checkpoint that was resharded."""
    return launches.consolidated
