"""One rank of a run, started by torchrun: `python -m zeromuon.commands.finetune.worker RUN_FOLDER`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import secrets
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

import zeromuon

from ...base import durable
from ...ranks import machine
from ...ranks.channel import tell
from ...ranks.connect import Ranks, connect
from ...ranks.leave import leave, outlive_output
from ...selection.language_model import CAUSAL
from . import baseline, checkpoints, data, evaluation, model_io, report, saved
from .ds_config import check_config, differing_keys, fill_auto, override, read_config
from .model_folder import DEMO_PACKAGE, open_model
from .model_io import LoadedModel
from .run_folder import FINISHED, INTERRUPTED, RUNNING, RunFolder
from .settings import Settings
from .training import StepTracer, Trainer

FROM_THE_START = {"step": 0, "position": 0, "run": ""}


@dataclass(frozen=True)
class Prepared:
    """What a run works on once model and data are loaded."""

    loaded: LoadedModel
    layout: data.Layout
    chunks: object  # [C, T] int64, training
    held_out: evaluation.HeldOut
    baseline: float  # nats per token, over the whole held-out text
    baseline_of_targets: float  # the same model, over the tokens that the held-out loss is taken over
    text_sha256: str
    tokens_sha256: str  # of the text, as the model's tokenizer cuts it
    repeated: float | None  # share of the held-out tokens in passages that training has too


def run(folder: RunFolder) -> None:
    """The life of a run on one rank."""
    settings = Settings.load(folder.settings)
    with durable.Lock(folder.path, shared=True):  # until this rank ends: it may outlive the command that started it
        train(folder, settings, connect())


def train(folder: RunFolder, settings: Settings, ranks: Ranks) -> None:
    """Loads, trains, and saves, to the end or to an agreed stop."""
    say = functools.partial(print, flush=True) if ranks.rank == 0 else lambda words: None
    prepared = prepare(settings, say)
    run_id = require_same_inputs(folder, ranks, prepared, settings)
    engine = build_engine(prepared.loaded, settings, folder, ranks)
    dtype = str(next(iter(prepared.loaded.model.parameters())).dtype).removeprefix("torch.")
    say(f"computing in {dtype} on {ranks.device.partition(':')[0]}, {ranks.world_size} ranks")
    trainer = make_trainer(engine, prepared, settings, folder, ranks, run_id)
    before = first_loss(trainer, prepared, say)
    reached_the_end = trainer.train()
    trainer.progress.close()
    if reached_the_end:
        finish(trainer, prepared, before, say)
    elif ranks.rank == 0:
        folder.set_status(INTERRUPTED, trainer.step)
    ranks.barrier()


def prepare(settings: Settings, say) -> Prepared:
    """Loads model and text, and says what they are. Raises ValueError if the text is too short for one step."""
    loaded = model_io.load_model(settings.model, settings.seed)
    say(loaded.describe(settings.seed))
    text = data.read_text(settings.data)
    corpus = data.tokenize(loaded.tokenizer, text)
    masked = loaded.task != CAUSAL
    vocab_size = loaded.model.config.vocab_size
    layout = data.layout_for(loaded.tokenizer, settings.seq_len, vocab_size, masked)
    chunks = data.chunk(corpus.train, layout)
    held_out = data.chunk(corpus.held_out, layout)
    require_enough(len(chunks), len(held_out), settings)
    labelled = data.with_held_out_labels(held_out, layout)
    held_out = evaluation.HeldOut(*(tensor[: evaluation.MOST_SEQUENCES] for tensor in labelled), causal=not masked)
    counts_only = baseline.unigram_cross_entropy(corpus.train, corpus.held_out, vocab_size)
    of_targets = baseline.unigram_cross_entropy(corpus.train, held_out.targets(), vocab_size)
    repeated = data.repeated_fraction(corpus)
    digest = hashlib.sha256(text.encode()).hexdigest()
    describe_text(text, digest, corpus, repeated, counts_only, settings, say)
    tokens = data.tokens_sha256(corpus)
    return Prepared(loaded, layout, chunks, held_out, counts_only, of_targets, digest, tokens, repeated)


def require_same_inputs(folder: RunFolder, ranks: Ranks, prepared: Prepared, settings: Settings) -> str:
    """Notes what the run begins with, and a name for it that no other run has. Returns that name; "" where it is not known:
    of a run of an earlier zeromuon, or where the notes were removed. Every rank must call it.

    Raises ValueError where text, tokenizer, model, configuration or settings are not those that the run began with.
    """
    now = {
        "settings": {name: getattr(settings, name) for name in ("steps", "seq_len", "seed")},
        "text_sha256": prepared.text_sha256,
        "tokens_sha256": prepared.tokens_sha256,
        "model_config": open_model(Path(settings.model)).config,
        "config": read_config(Path(settings.config)),
    }
    try:
        before = json.loads(folder.inputs.read_text())
        wrong = next((name for name in now if type(before.get(name, now[name])) is not type(now[name])), None)
        if wrong or "config" not in before or not isinstance(before.get("run", ""), str):
            raise ValueError(wrong or "config or run")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder.inputs}: damaged ({error}); remove it to go on without comparing the inputs"
        ) from None
    except OSError:  # a new run, or one of a zeromuon that did not note them
        before = None
    if ranks.sum([before is None])[0]:  # rank 0 may have written them before another looked
        is_new = ranks.rank == 0 and not saved.whole(folder.checkpoints)
        number = int(ranks.sum([1 + secrets.randbits(48) if is_new else 0])[0])  # of rank 0 alone
        run_id = f"{number:013x}" if number else ""
        if ranks.rank == 0:
            durable.write_text(folder.inputs, json.dumps({**now, "run": run_id}, indent=2) + "\n")
        return run_id
    before = {**now, **before}  # an older zeromuon noted less
    what = []
    notes = (
        ("config", settings.config),
        ("model_config", f"{settings.model}/config.json"),
        ("settings", str(folder.settings)),
    )
    for name, path in notes:
        if changed := differing_keys(before[name], now[name]):
            what.append(f"{path} ({', '.join(changed)})")
    if before["text_sha256"] != now["text_sha256"]:
        what.append(settings.data)
    elif before["tokens_sha256"] != now["tokens_sha256"]:
        what.append(f"the tokenizer of {settings.model}")
    if what:
        raise ValueError(
            f"--resume {folder.path}: expected the text, the model and the configuration that the run began with, found "
            f"changes in {' and '.join(what)}; take them back, or start a new run"
        )
    return before.get("run", "")


def describe_text(
    text: str, digest: str, corpus: data.Corpus, repeated: float | None, counts_only: float, settings, say
):
    """Says how much text there is, how much of the held-out part is repeated, and whether the demo's is on record."""
    counts = f"{len(corpus.train)} training tokens, {len(corpus.held_out)} held out (the last tenth)"
    say(f"data: {len(text)} characters, {counts}")
    if repeated:
        say(
            f"{100 * repeated:.0f} % of the held-out tokens stand in passages of {data.PASSAGE} tokens"
            " that also occur in the training text: there the loss measures memory"
        )
    if settings.data == data.DEMO_DATA:
        own_model = settings.model_name != DEMO_PACKAGE
        say(baseline.describe_demo_text(digest, platform.python_version(), own_model, counts_only))


def require_enough(train: int, held_out: int, settings: Settings) -> None:
    """Raises ValueError if there is no sequence to hold out, or fewer to train on than one micro-batch of all ranks."""
    needed = settings.batch * settings.ranks
    if train < needed or held_out < 1:
        raise ValueError(
            f"--data {settings.data}: expected at least {needed} training sequences of {settings.seq_len} tokens and 1 held"
            f" out, found {train} and {held_out}; give a longer text, or a smaller --batch or --seq-len"
        )


def build_engine(loaded: LoadedModel, settings: Settings, folder: RunFolder, ranks: Ranks):
    """DeepSpeed's engine, with the configuration that it got written to the run folder."""
    import deepspeed

    zeromuon.register(replace_muon=True)
    config = override(read_config(Path(settings.config)), settings.overrides)
    check_config(config, settings.config)
    bf16 = machine.cpu_has_bf16() if ranks.device == "cpu" else torch.cuda.is_bf16_supported()
    config = fill_auto(config, settings, bf16)
    if ranks.rank == 0:
        durable.write_text(folder.config, json.dumps(config, indent=2) + "\n")
    engine, *_ = deepspeed.initialize(
        model=loaded.model, model_parameters=list(loaded.model.parameters()), config=config
    )
    return engine


def make_trainer(
    engine, prepared: Prepared, settings: Settings, folder: RunFolder, ranks: Ranks, run_id: str
) -> Trainer:
    """A trainer at step 0, or at the newest checkpoint of the folder."""
    checkpoints.seed_random(settings.seed, ranks.rank)
    progress = report.Progress(ranks.rank, settings.steps)
    found = checkpoints.load(engine, ranks, folder.checkpoints, settings.seed, run_id, progress.note)
    point = found or FROM_THE_START
    batches = data.TrainingBatches(
        prepared.chunks, prepared.layout, settings.seed, ranks.rank, ranks.world_size, settings.batch, point["position"]
    )
    if ranks.rank == 0:
        folder.drop_metrics_after(point["step"])
        folder.set_status(RUNNING, point["step"])
    if point["step"]:
        progress.note(f"going on from the checkpoint of step {point['step']}")
    steps_to_go = settings.steps - point["step"]
    tracer = StepTracer(engine.optimizer.optimizer, settings.trace, steps_to_go, progress.note)
    return Trainer(engine, batches, settings, folder, ranks, progress, tracer, run_id or point["run"], point["step"])


def first_loss(trainer: Trainer, prepared: Prepared, say) -> float | None:
    """The held-out loss before training: measured at step 0, read from the metrics when going on, None when they lost it.
    Every rank must call it."""
    known = saved_first_loss(trainer.folder, trainer.ranks)
    if known is not None or trainer.step > 0:
        return known
    loss = evaluation.held_out_loss(trainer.engine, prepared.held_out, trainer.settings.batch, trainer.ranks)
    if trainer.ranks.rank == 0:
        trainer.folder.append_metric({"step": 0, "held_out_loss": loss})
    say(f"held-out loss before: {loss:.3f} nats per token; word counts only: {prepared.baseline:.2f}")
    return loss


def saved_first_loss(folder: RunFolder, ranks: Ranks) -> float | None:
    """What the metrics say of step 0, the same on every rank: rank 0 alone reads them, as it alone rewrites them."""
    entries = folder.read_metrics() if ranks.rank == 0 else []
    found = [entry["held_out_loss"] for entry in entries if entry["step"] == 0][:1]
    count, loss = ranks.sum([float(len(found)), sum(found)])
    return loss if count else None


def finish(trainer: Trainer, prepared: Prepared, before: float | None, say) -> None:
    """Measures, saves and checks the model, draws the curve, and says how it went."""
    settings, folder, ranks, engine = trainer.settings, trainer.folder, trainer.ranks, trainer.engine
    after = evaluation.held_out_loss(engine, prepared.held_out, settings.batch, ranks)
    say("saving the model")
    model_io.save_model(prepared.loaded, folder.model, ranks.rank)
    digest = verify(trainer, prepared) if settings.verify else None
    resident, adamw = state_bytes(engine, ranks)
    if ranks.rank != 0:
        return
    result = {
        "title": f"{settings.model_name}: {settings.steps} steps, {settings.ranks} ranks",
        "held_out_before": before,
        "held_out_after": after,
        "baseline": prepared.baseline,
        "baseline_of_targets": prepared.baseline_of_targets,
        "held_out_repeated": prepared.repeated,
        "steps": trainer.step,
        "ranks": ranks.world_size,
        "state_bytes": resident,
        "adamw_state_bytes": adamw,
        "verified": settings.verify,
        "logits_sha256": digest,
        "random_parameters": list(prepared.loaded.random_parameters),
        "lanes": trainer.tracer.lanes,
        "trace": settings.trace,
    }
    folder.append_metric({"step": trainer.step, "held_out_loss": after})
    durable.write_text(folder.result, json.dumps(result, indent=2) + "\n")
    steps = [entry for entry in folder.read_metrics() if "loss" in entry]
    report.draw_curve(folder.curve, steps, result)
    say(report.summary(result, folder.path, [entry for entry in steps if "seconds" in entry]))
    folder.set_status(FINISHED, trainer.step)


def verify(trainer: Trainer, prepared: Prepared) -> str | None:
    """Compares the saved model's logits with the engine's; every rank takes part in the engine's forward pass.

    Returns, on rank 0, the sha256 of the logits of the first held-out sequences.
    """
    probe = prepared.held_out.input_ids[: trainer.settings.batch].to(trainer.ranks.device)
    logits = evaluation.logits_of(trainer.engine, probe)
    if trainer.ranks.rank != 0:
        return None
    return model_io.verify_model(prepared.loaded.task, trainer.folder.model, logits, probe)


def state_bytes(engine, ranks: Ranks) -> tuple[int, int]:
    """(resident optimizer-state bytes, what AdamW would hold), summed over ranks; (0, 0) for an optimizer that does not count."""
    optimizer = engine.optimizer.optimizer
    counted = optimizer.state_bytes() if hasattr(optimizer, "state_bytes") else {"resident": 0, "adamw": 0}
    return tuple(int(total) for total in ranks.sum([counted["resident"], counted["adamw"]]))


def log_traceback(folder: RunFolder) -> None:
    """Of the exception that is being handled."""
    with contextlib.suppress(OSError), open(folder.log, "a") as log:  # the disk may be what is full
        traceback.print_exc(file=log)


def main(argv: list[str]) -> int:
    """Runs the rank of the run folder `argv[0]`; if it fails, tells the parent why and leaves the traceback in the log."""
    folder = RunFolder(Path(argv[0]))
    outlive_output()
    if os.environ["RANK"] == "0":
        os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # rank 0's warnings reach the terminal, the others' the log
    try:
        run(folder)
    except Exception as error:
        error = checkpoints.with_room_considered(error, folder.path)
        kind = type(error).__name__
        tell(message=str(error) or kind, kind=kind, user_error=isinstance(error, ValueError))
        log_traceback(folder)
        return 1  # and no process group is destroyed: another rank may wait in a collective
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
