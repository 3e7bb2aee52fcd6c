"""The parent of a run: checks everything, starts the ranks through torchrun, and turns Ctrl-C into a saved stop."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

from ...base import durable
from ...ranks import machine
from ...ranks.launch import Launch, check_ranks, threads_of
from . import data, run_folder, saved
from .ds_config import check_config, fill_auto, override, read_config
from .ds_keys import check_keys
from .model_folder import open_model, require_memory
from .run_folder import FAILED, FINISHED, INTERRUPTED, RunFolder
from .settings import Settings

MOVABLE = ("ranks", "batch")  # may differ when a run goes on with another number of ranks
SAVE_FAILED = "SaveFailed"  # of a rank: says itself what is left and what to do
# The largest values that numbers of a run may have.
MOST = {
    "ranks": 65536, "steps": 10**12, "save_every": 10**12, "keep_checkpoints": 10**12, "batch": 10**9, "seq_len": 10**9,
    "seed": 2**62,
}  # fmt: skip
LOG_LINES = 15  # of the ranks' log, shown when a rank died without saying why


def check(settings: Settings, ranks_here: int | None = None) -> list[str]:
    """Looks at everything that can be wrong before a rank is started or a file written. ranks_here: on this machine; None: all.

    Returns sentences to warn with. Raises ValueError for a bad model, data, configuration, number of ranks, or too little memory.
    """
    check_numbers(settings)
    model = open_model(Path(settings.model))
    if settings.data != data.DEMO_DATA:
        data.check_text(Path(settings.data))
    config = override(read_config(Path(settings.config)), settings.overrides)
    check_keys(config, f"--config {settings.config}" + "".join(f" --set {text}" for text in settings.overrides))
    check_config(config, settings.config)
    fill_auto(config, settings, bf16=False)
    if settings.trace:
        check_trace_file(Path(settings.trace))
    model.check_length(settings.seq_len)
    gpus = machine.gpu_count()
    here = ranks_here or settings.ranks
    warnings = check_ranks(here, machine.core_count(), gpus)
    require_memory(machine.available_memory_bytes(), model, settings, on_gpu=gpus > 0, ranks_here=here)
    return warnings


def check_numbers(settings: Settings) -> None:
    """Raises ValueError for one that is out of range."""
    for name, most in MOST.items():
        value, least = getattr(settings, name), -most if name == "seed" else 1
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
        if value > most:
            raise ValueError(f"--{name.replace('_', '-')} {_shortened(value)}: expected at most {most}")


def _shortened(value: int) -> str:
    """Python refuses to print numbers of thousands of digits."""
    return str(value) if abs(value) < 10**30 else "of more than 30 digits"


def check_trace_file(path: Path) -> None:
    """Raises ValueError unless a file can be written there."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--trace {path}: expected a file in a folder that exists and can be written; choose another")


def rank_environment(ranks_here: int) -> dict[str, str]:
    """The environment of the ranks of this machine; what the user has set stays."""
    chosen = {
        "OMP_NUM_THREADS": str(threads_of(ranks_here)),
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "DS_ACCELERATOR": "cuda" if machine.gpu_count() else "cpu",
    }
    return {**chosen, **os.environ}


def stopped_text(step: int, steps: int, folder: RunFolder) -> str:
    where = f"saved in {folder.path}" if step else "nothing to save yet"
    return f"stopped after step {step} of {steps}, {where}"


class Launcher:
    """One run of the ranks. Thread: the main thread only (it handles signals)."""

    def __init__(self, folder: RunFolder, settings: Settings):
        self.folder, self.settings = folder, settings
        self._signals: list[int] = []
        self._ranks: Launch | None = None

    def run(self) -> int:
        """Returns the exit status: 0 finished, 130 stopped by Ctrl-C (143 by SIGTERM), 2 bad input found by a rank,
        1 another failure.
        """
        durable.remove(self.folder.stop_request)
        self._log_begin = len(self.folder.log.read_text(errors="replace")) if self.folder.log.exists() else 0
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Launch(
                f"{__package__}.worker",
                self.folder.path,
                ranks=self.settings.ranks,
                environment=rank_environment(self.settings.ranks),
                log=self.folder.log,
                shows_output=True,
            ) as self._ranks:
                status = self._ranks.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self._conclude(status)

    def _on_signal(self, number: int, _frame) -> None:
        self._signals.append(number)
        if len(self._signals) == 1:
            self.folder.stop_request.touch()
            print("\nstopping: the running step is finished and saved first (Ctrl-C again kills at once)", flush=True)
        elif self._ranks:
            self._ranks.kill()

    def _conclude(self, status: int) -> int:
        state = self.folder.status()
        self.folder.stop_request.unlink(missing_ok=True)
        if state["state"] == FINISHED and status == 0:
            return 0
        if self._signals or (state["state"] == INTERRUPTED and status == 0):
            return self._stopped(state)
        self._note(FAILED, state["step"])
        return self._failed(status)

    def _note(self, state: str, step: int) -> None:
        """The status on disk; where there is no room for it, what is said next counts more."""
        try:
            self.folder.set_status(state, step)
        except OSError as error:
            print(f"warning: {self.folder.status_file}: {error.strerror}", file=sys.stderr)

    def _stopped(self, state: dict) -> int:
        if state["state"] == INTERRUPTED:
            print(stopped_text(state["step"], self.settings.steps, self.folder))
        else:
            self._note(INTERRUPTED, state["step"])
            print(f"killed; what was saved before is in {self.folder.path}")
        print(f"go on with: {self._again()}", flush=True)
        return 128 + (self._signals[0] if self._signals else signal.SIGTERM)

    def _again(self) -> str:
        return shlex.join(["zeromuon", "finetune", "--resume", "--out", str(self.folder.path)])

    def _what_next(self) -> str:
        checkpoint, _ = saved.choose(self.folder.checkpoints, self.settings.ranks)
        return f"; {checkpoint.name} is whole, go on with: {self._again()}" if checkpoint else ""

    def _failed(self, status: int) -> int:
        first = next(iter(self._ranks.told()), None)
        log = self.folder.log.read_text(errors="replace")
        killed = None if first and first["user_error"] else killed_rank(log[self._log_begin :])
        if killed:  # what other ranks say of it is about their connections
            words = f"{killed}{self._what_next()}; the whole log is {self.folder.log}"
        elif first is None:
            print("\n".join(log.splitlines()[-LOG_LINES:]), file=sys.stderr)
            words = f"the ranks ended with status {status} and said no more; the whole log is {self.folder.log}"
        elif first["user_error"] or first["kind"] == SAVE_FAILED:
            words = first["message"]
        else:
            words = f"rank {first['rank']}: {first['kind']}: {first['message']}; the traceback is in {self.folder.log}"
        print(f"error: {words}", file=sys.stderr)
        return 2 if first and first["user_error"] else 1


def killed_rank(log: str) -> str:
    """Which rank a signal ended first, in words, by what torchrun says in its log; "" where none did.

    Where ranks end within one look of torchrun, it may name another one as the cause; those that it ends itself get SIGTERM.
    """
    others, _, cause = log.partition("Root Cause")
    named = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: -(\d+) ")
    ended = [tuple(map(int, found)) for found in (*named.findall(cause), *named.findall(others))]
    if not named.search(cause):
        ended = [(rank, number) for rank, number in ended if number != signal.SIGTERM]
    if not ended:
        return ""
    rank, number = ended[0]
    why = ": the system does that when memory runs out, see dmesg" if number == signal.SIGKILL else ""
    return f"rank {rank} was ended by {signal.Signals(number).name}{why}"


def start(folder: RunFolder, settings: Settings) -> int:
    """A new run: checks, creates the folder, runs. Returns the exit status; raises ValueError before anything is written."""
    lock, warnings = prepare_start(folder, settings)
    with lock:
        return _launch(folder, settings, warnings, lock)


def prepare_start(
    folder: RunFolder, settings: Settings, ranks_here: int | None = None
) -> tuple[durable.Lock, list[str]]:
    """Checks and makes the folder of a new run, which is locked then. Returns sentences to warn with, too."""
    warnings = check(settings, ranks_here)
    durable.make_folder(folder.path)
    lock = durable.Lock(folder.path)
    try:
        run_folder.require_unused(folder)
        settings.save(folder.settings)
    except BaseException:
        lock.close()
        raise
    return lock, warnings


def resume(folder: RunFolder, given: dict) -> int:
    """Goes on with a run. given: options asked for now; each must be what the run was started with, but for the number of
    ranks (and with it the batch), which must be that of the newest checkpoint. Raises ValueError otherwise.
    """
    with durable.Lock(folder.path) as lock:
        settings, warnings = prepare_resume(folder, given)
        return _launch(folder, settings, warnings, lock)


def prepare_resume(folder: RunFolder, given: dict, ranks_here: int | None = None) -> tuple[Settings, list[str]]:
    """Settings to go on with in a folder that is locked, and sentences to warn with."""
    settings = Settings.load(folder.settings)
    moved = {name: given[name] for name in MOVABLE if name in given} if "ranks" in given else {}
    differences = settings.differences({name: value for name, value in given.items() if name not in moved})
    if differences:
        found = f"found others ({'; '.join(differences)}); leave them out, or start a new run"
        raise ValueError(f"--resume {folder.path}: expected the options of the run, {found}")
    resumed = replace(settings, **moved)
    check_numbers(resumed)
    latest = folder.checkpoints / saved.LATEST
    if latest.is_dir():
        raise ValueError(f"{latest}: expected a file with the name of a checkpoint, found a folder; move it away")
    checkpoint, _ = saved.choose(folder.checkpoints, resumed.ranks)
    if checkpoint:
        require_all_files(checkpoint)
        require_same_ranks(folder, checkpoint, resumed.ranks)
        if (step := saved.step_of(checkpoint)) > resumed.steps:
            raise ValueError(
                f"--resume {folder.path}: expected a checkpoint of step {resumed.steps} at most, the last of the run, found "
                f"{checkpoint}, of step {step}: it is of another run, or {folder.settings} was changed; {saved.way_back(checkpoint)}"
            )
    warnings = check(resumed, ranks_here)
    if not checkpoint and (lost := max([folder.status()["step"], *(e["step"] for e in folder.read_metrics())])):
        warnings.append(
            f"{folder.checkpoints} holds no whole checkpoint, and the run was at step {lost}: it begins again at step 0"
        )
    if resumed != settings:
        now = f"{_in_words(resumed.ranks)} x {resumed.batch} sequences a micro-batch"
        warnings.append(f"{now}, where the run had {settings.ranks} x {settings.batch}; --batch with --ranks sets it")
        resumed.save(folder.settings)
    return resumed, warnings


def require_all_files(checkpoint: Path) -> None:
    """Raises ValueError with the way back, if a file of a rank is missing."""
    if missing := saved.missing_file(checkpoint):
        raise ValueError(
            f"{checkpoint}: {missing}, which was there when it was saved, is missing; restore it; or else "
            f"{saved.way_back(checkpoint)}"
        )


def require_same_ranks(folder: RunFolder, checkpoint: Path, ranks: int) -> None:
    """Raises ValueError with the command that reshards, if this checkpoint of the run is not one of `ranks` ranks."""
    found = saved.ranks_of(checkpoint)
    if found == ranks:
        return
    tag = f"step{saved.step_of(checkpoint)}-{ranks}ranks"
    words = ["zeromuon", "ckpt", "reshard", str(folder.checkpoints), "--tag", checkpoint.name]
    words += ["-o", str(folder.checkpoints), "--world-size", str(ranks), "--new-tag", tag]
    remedy = f"write one for {ranks} with: {shlex.join(words)}"
    if (there := folder.checkpoints / tag).exists():
        remedy += " --force"
        if saved.is_whole(there) and saved.ranks_of(there) == ranks:
            remedy = f"write {tag}, which is one for {ranks}, into {folder.checkpoints / saved.LATEST}"
    raise ValueError(
        f"--resume {folder.path}: expected a checkpoint of {_in_words(ranks)}, found one of {found} in {checkpoint};"
        f" say --ranks {found}, or {remedy}"
    )


def _in_words(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks != 1 else ''}"


def _launch(folder: RunFolder, settings: Settings, warnings: list[str], lock: durable.Lock) -> int:
    lock.share()  # with the ranks
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    print(f"run folder: {folder.path}\nstarting {_in_words(settings.ranks)} ...", flush=True)
    return Launcher(folder, settings).run()
