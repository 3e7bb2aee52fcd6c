"""The checkpoints of a run as they lie on disk: which are whole, which one to go on from, which may go. No torch.

A checkpoint is whole when its marker is there. The marker is the last of it that is written, and the first that goes; `latest`
names a checkpoint only once that has its marker. Every step is on disk before the next, so that this holds after a power cut.
The marker has a seal of every rank's file, so that one of another step, rank or run is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zipfile
from pathlib import Path

from ...base import durable
from ...base.entry import MARKER

LATEST = "latest"
_OURS = re.compile(r"step(\d+)(-\d+ranks)?")
_FIELDS = {"step": int, "ranks": int, "saved_at": float, "files": dict}  # of a marker; files: name -> seal


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint: 40 for step40 and for step40-3ranks; -1 for another name."""
    found = _OURS.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def ranks_of(checkpoint: Path) -> int:
    """How many ranks wrote the checkpoint: what its marker says, else its files of model states."""
    return _marker(checkpoint).get("ranks", 0) or _model_files(checkpoint)


def _model_files(checkpoint: Path) -> int:
    return len(list(checkpoint.glob("zero_pp_rank_*_mp_rank_00_model_states.pt")))


def _marker(checkpoint: Path) -> dict:
    """What it says, of _FIELDS; nothing where there is none, or it is damaged."""
    said = durable.read_json(checkpoint / MARKER)
    found = said.items() if isinstance(said, dict) else ()
    return {name: value for name, value in found if name in _FIELDS and type(value) is _FIELDS[name]}


def missing_file(checkpoint: Path) -> str:
    """The name of a rank's file that was there when the checkpoint was marked as whole, and is not now; "" for none."""
    for rank in range(ranks_of(checkpoint)):
        for kind in ("model", "optim"):
            name = f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
            if not any(checkpoint.glob(f"*{name}")):
                return name
    return ""


def damage(checkpoint: Path, rank: int) -> str:
    """What is wrong with a rank's files: cut short, bytes that are not those of their CRCs, which torch.load does not look at,
    or a file of another step, rank or run. "" for nothing."""
    seals = _marker(checkpoint).get("files", {})
    for path in sorted(checkpoint.glob(f"*zero_pp_rank_{rank}_mp_rank_00_*_states.pt")):
        try:
            with zipfile.ZipFile(path) as archive:
                record, names = archive.testzip(), archive.namelist()
        except Exception as error:  # damaged fields of a zip have it raise what they like
            return f"{path.name} is damaged: {error}"
        if record is not None:
            return f"{path.name} is damaged: the bytes of {record} are not those of its CRC"
        written_as = next(iter(names), "").partition("/")[0]  # torch.save has the file's name there
        if "zero_pp_rank_" in written_as and written_as != path.stem:
            return f"{path.name} was written as {written_as}.pt: it is of another rank"
        if seals.get(path.name, seal := _seal_of(path)) != seal:
            return f"{path.name} is not the file that was saved there: it is of another step, rank or run"
    return ""


def _seal_of(path: Path) -> str:
    from ..._ckpt import seal_of

    return seal_of(os.fsencode(path))


def is_whole(checkpoint: Path) -> bool:
    """Whether it can be gone on from. One without marker (of an older run, of `zeromuon ckpt reshard`) is read."""
    if (checkpoint / MARKER).is_file():
        return True
    if not checkpoint.is_dir():
        return False
    from ... import ckpt

    with contextlib.suppress(ValueError, OSError):
        return ckpt.inspect(checkpoint.parent, tag=checkpoint.name)["world_size"] == ranks_of(checkpoint) > 0
    return False


def time_of(checkpoint: Path) -> float:
    """When it was saved, in seconds since 1970."""
    return _marker(checkpoint).get("saved_at", checkpoint.stat().st_mtime)


def named_by_latest(checkpoints: Path) -> Path | None:
    """The folder that `latest` names, if it is one."""
    with contextlib.suppress(OSError, ValueError):  # of bytes that are no text, or a NUL
        name = (checkpoints / LATEST).read_text().strip()
        if name and Path(name).name == name and (checkpoints / name).is_dir():
            return checkpoints / name
    return None


def choose(checkpoints: Path, ranks: int) -> tuple[Path | None, str]:
    """(the checkpoint to go on from, or None; a sentence when that is not the one that `latest` names, or "").

    `latest` is followed when what it names is whole, also when that is not the newest: so a user goes back. Else the newest whole
    one is taken, of `ranks` ranks if there is one.
    """
    latest = named_by_latest(checkpoints)
    if latest and is_whole(latest):
        return latest, ""
    found = whole(checkpoints)
    of_ranks = [checkpoint for checkpoint in found if ranks_of(checkpoint) == ranks]
    chosen = next(reversed(of_ranks or found), None)
    if chosen is None or latest is None and not (checkpoints / LATEST).exists():
        return chosen, f"{checkpoints} has no file {LATEST}: {chosen.name} is the newest whole one" if chosen else ""
    return chosen, f"{checkpoints / LATEST} names no whole checkpoint: {chosen.name} is the newest that is"


def whole(checkpoints: Path) -> list[Path]:
    """Those of this run that are whole, in the order of saving."""
    return sorted(filter(is_whole, _ours(checkpoints)), key=time_of)


def _ours(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob("step*") if _OURS.fullmatch(path.name) and path.is_dir()]


def way_back(checkpoint: Path) -> str:
    """What to do without it."""
    others = [path.name for path in whole(checkpoint.parent) if path != checkpoint and not missing_file(path)]
    if not others:
        return "no other is whole"
    return f"write {others[-1]} into {checkpoint.parent / LATEST} to go on from there"


# ---- saving --------------------------------------------------------------------------------------


def unmark(checkpoint: Path) -> None:
    """It counts as torn from now on. A link goes, and what it points to stays whole."""
    if checkpoint.is_symlink():
        durable.remove(checkpoint)
    elif (checkpoint / MARKER).exists():
        (checkpoint / MARKER).unlink()
        durable.sync(checkpoint)


def sync_files_of_rank(checkpoint: Path, rank: int) -> None:
    """What this rank wrote is on disk; rank 0 takes what carries no rank."""
    for path in checkpoint.iterdir():
        found = re.search(r"zero_pp_rank_(\d+)_", path.name)
        if path.is_file() and (int(found[1]) if found else 0) == rank:
            durable.sync(path)


def finish(checkpoint: Path, step: int) -> None:
    """Marks it as whole and lets `latest` name it. All of its files are on disk."""
    durable.sync(checkpoint)
    durable.sync(checkpoint.parent)
    seals = {path.name: _seal_of(path) for path in sorted(checkpoint.glob("*zero_pp_rank_*_states.pt"))}
    marker = {"step": step, "ranks": _model_files(checkpoint), "saved_at": time.time(), "files": seals}
    durable.write_text(checkpoint / MARKER, json.dumps(marker) + "\n")
    durable.write_text(checkpoint.parent / LATEST, checkpoint.name)


def drop_old(checkpoints: Path, keep: int) -> None:
    """Removes torn checkpoints and all but the `keep` that were saved last; never what `latest` names, the newest whole one, or
    a folder of another name."""
    found = whole(checkpoints)
    if not found:
        return
    kept = {*found[-max(1, keep) :], named_by_latest(checkpoints)}
    for checkpoint in sorted(set(_ours(checkpoints)) - kept, key=lambda path: (path in found, time_of(path))):
        unmark(checkpoint)
        durable.remove(checkpoint)
    durable.sync(checkpoints)
