"""Whole runs of a tiny model on 2 ranks: interrupted, killed, resumed, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zeromuon.base.shipped import config_file

STEPS = 60  # some tens of milliseconds each: enough to be interrupted in the middle
FRESH_LOGITS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForMaskedLM, AutoTokenizer
from zeromuon.commands.finetune import data, model_io
folder, text = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained(folder)
layout = data.layout_for(tokenizer, 16, model.config.vocab_size, masked=True)
held_out = data.tokenize(tokenizer, Path(text).read_text()).held_out
ids, _ = data.with_held_out_labels(data.chunk(held_out, layout)[:512], layout)
with torch.no_grad():
    print(model_io.logits_sha256(model.eval()(input_ids=ids[:4]).logits))
"""


def options(model: Path, text_file: Path, out: Path, steps: int = STEPS):
    sizes = ["--ranks", 2, "--batch", 4, "--seq-len", 16, "--steps", steps, "--save-every", 1000]
    return ["--model", model, "--data", text_file, "--out", out, *sizes, "--set", "bf16.enabled=false", "--verify"]


@pytest.fixture(scope="module")
def uninterrupted(command, masked_model, text_file, tmp_path_factory):
    """(run folder, output) of a run that nobody stopped, with a trace beside the folder."""
    out = tmp_path_factory.mktemp("whole") / "run"
    trace = ("--trace", out.parent / "step.json")
    status, output = command(*options(masked_model, text_file, out), *trace).finish()
    assert status == 0, output
    return out, output


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(run) if "loss" in entry]


def test_an_interrupted_and_resumed_run_ends_with_the_same_weights_bit_for_bit(
    command, uninterrupted, masked_model, text_file, tmp_path
):
    out = tmp_path / "run"
    first = command(*options(masked_model, text_file, out))
    first.interrupt_after(out, step=5)
    status, output = first.finish()
    assert status == 130, output
    assert f"go on with: zeromuon finetune --resume --out {out}" in output
    stopped_at = json.loads((out / "status.json").read_text())
    assert stopped_at["state"] == "interrupted" and 5 <= stopped_at["step"] < STEPS
    status, output = command("--resume", "--out", out).finish()
    assert status == 0, output
    assert f"going on from the checkpoint of step {stopped_at['step']}" in output
    assert weights(out) == weights(uninterrupted[0])
    assert losses(out) == losses(uninterrupted[0]) and len(losses(out)) == STEPS


def test_a_resume_with_another_text_or_configuration_is_refused_by_name(command, masked_model, text_file, tmp_path):
    out, text, config = tmp_path / "run", tmp_path / "words.txt", tmp_path / "config.json"
    text.write_bytes(text_file.read_bytes())
    shipped = json.loads(config_file("zero3_muon_offload.json", "--config").read_text())
    config.write_text(json.dumps(shipped))
    first = command(*options(masked_model, text, out), "--config", config)
    first.interrupt_after(out, step=2)
    assert first.finish()[0] == 130
    before = (out / "metrics.jsonl").read_text()
    text.write_text(text.read_text()[::-1])
    config.write_text(json.dumps({**shipped, "gradient_clipping": 0.01}))
    status, output = command("--resume", "--out", out).finish()
    assert status == 2 and f"found changes in {config} (gradient_clipping) and {text}" in output, output
    assert (out / "metrics.jsonl").read_text() == before


def test_a_second_interrupt_kills_the_ranks_and_the_run_can_start_over(
    command, uninterrupted, masked_model, text_file, tmp_path
):
    out = tmp_path / "run"
    run = command(*options(masked_model, text_file, out))
    run.interrupt_after(out, step=2, hold_the_ranks=True)
    status, output = run.finish()
    assert status == 130 and "killed; what was saved before" in output, output
    assert processes_of(out) == []
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    assert not (out / "checkpoints").exists(), "killed before the first was saved"
    status, output = command("--resume", "--out", out).finish()
    assert status == 0, output
    assert "going on from the checkpoint" not in output
    assert losses(out) == losses(uninterrupted[0])
    assert weights(out) == weights(uninterrupted[0])


def processes_of(folder: Path) -> list[int]:
    import psutil

    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def test_resuming_with_other_options_or_after_the_end_is_refused(command, uninterrupted, tmp_path):
    status, output = command("--resume", "--out", uninterrupted[0]).finish()
    assert status == 2 and f"finished at step {STEPS}" in output
    (uninterrupted[0] / "status.json").write_text('{"state": "interrupted", "step": 1}')
    try:
        status, output = command("--resume", "--out", uninterrupted[0], "--seed", 3).finish()
    finally:
        (uninterrupted[0] / "status.json").write_text(json.dumps({"state": "finished", "step": STEPS}))
    assert status == 2 and "seed is 0 there and 3 here" in output


def test_the_saved_model_has_no_missing_keys_and_bit_equal_logits_in_another_process(uninterrupted, text_file):
    folder, output = uninterrupted
    assert "the same logits bit for bit" in output
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FRESH_LOGITS, str(folder / "model"), str(text_file)]
    fresh = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.strip() == json.loads((folder / "result.json").read_text())["logits_sha256"]


def test_a_run_says_that_the_head_is_random_and_what_the_optimizer_holds(uninterrupted):
    folder, output = uninterrupted
    assert "start at random (seed 0): " in output and "cls.predictions.transform.dense.weight" in output
    assert "held-out loss before:" in output and "word counts only" in output
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["state_bytes"] < result["adamw_state_bytes"]
    assert "AdamW would hold" in output and str(folder) in output


def test_the_metrics_of_each_step_have_loss_speed_phases_and_bytes(uninterrupted):
    steps = [entry for entry in metrics(uninterrupted[0]) if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
    phases = {
        "forward",
        "backward",
        "momentum",
        "to_device",
        "gather_to_owner",
        "newton_schulz",
        "scatter_to_shards",
        "to_host",
        "apply",
        "adamw",
        "weights_to_device",
        "closing",
        "zero3",
    }
    for entry in steps:
        assert 0 < entry["optimizer_wall_seconds"] < entry["step_seconds"]
        assert set(entry["seconds"]) == phases
        assert entry["tokens_per_second"] > 0 and entry["bytes_sent"] > 0 and entry["skipped_steps"] == 0
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_run_says_how_a_step_splits_what_was_hidden_and_how_busy_the_lanes_were(uninterrupted):
    folder, output = uninterrupted
    assert "split of a step     ms: fwd " in output and "beside other work" in output
    lanes = json.loads((folder / "result.json").read_text())["lanes"]
    assert {"cpu", "compute", "collective"} <= set(lanes["busy_seconds"]), lanes
    assert all(0 < busy <= lanes["wall_seconds"] for busy in lanes["busy_seconds"].values()), (
        "a lane does one task at a time"
    )
    assert f"busy in a step of {1000 * lanes['wall_seconds']:.0f} ms" in output


def test_a_trace_of_one_step_shows_the_lanes_of_both_ranks(uninterrupted):
    folder, output = uninterrupted
    file = folder.parent / "step.json"
    assert f"trace of a step written: {file}" in output
    bars = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {b["pid"] for b in bars} == {0, 1}
    stages = {"step", "momentum", "gather_to_owner", "newton_schulz", "scatter_to_shards", "apply", "adamw"}
    for rank in (0, 1):
        assert stages <= {b["name"] for b in bars if b["pid"] == rank}, "on every rank"
    assert all(b["dur"] >= 0 and b["ts"] >= 0 for b in bars)


def test_a_run_leaves_curve_checkpoints_and_configuration(uninterrupted):
    folder = uninterrupted[0]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "checkpoints" / "latest").read_text().strip() == f"step{STEPS}"
    assert json.loads((folder / "ds_config.json").read_text())["train_batch_size"] == 8
    assert not (folder / "stop").exists()


def test_a_causal_model_with_transposed_weights_trains_and_loads(command, causal_model, text_file, tmp_path):
    status, output = command(*options(causal_model, text_file, tmp_path / "run", steps=6)).finish()
    assert status == 0, output
    assert "GPT2LMHeadModel: a causal language model" in output
    assert "the same logits bit for bit" in output


def test_a_text_too_short_for_one_step_is_refused_by_the_ranks_with_the_reason(command, masked_model, tmp_path):
    (tmp_path / "short.txt").write_text("the shard moves " * 20)
    status, output = command(*options(masked_model, tmp_path / "short.txt", tmp_path / "run")).finish()
    assert status == 2, output
    assert "expected at least 8 training sequences of 16 tokens" in output and "Traceback" not in output


@pytest.mark.full
def test_the_type_muon_is_ours_too(command, masked_model, text_file, tmp_path):
    out = tmp_path / "run"
    status, output = command(*options(masked_model, text_file, out, steps=3), "--set", "optimizer.type=Muon").finish()
    assert status == 0, output
    assert json.loads((out / "result.json").read_text())["state_bytes"] > 0, "only ZeroMuon counts them"
