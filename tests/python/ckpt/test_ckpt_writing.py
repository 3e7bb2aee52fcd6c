"""The verbs of `zeromuon ckpt` that write: every option, overwriting, Ctrl-C and going on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.python.ckpt import command_inputs as inputs
from tests.python.ckpt.test_ckpt_command import all_weights, ckpt, exported, same, zero3  # noqa: F401  (fixtures)


def optimizer_of(folder: Path, rank: int = 0) -> dict:
    file = next(folder.rglob(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    return torch.load(file, weights_only=False)["optimizer_state_dict"]


# ---- export --------------------------------------------------------------------------------------


def test_export_writes_the_master_weights_bit_for_bit_and_tied_ones_once(ckpt, zero3, tmp_path):
    status, out, err = ckpt("export", zero3, "-o", tmp_path / "out")
    assert status == 0 and err == ""
    assert same(exported(tmp_path / "out"), all_weights())
    assert "tied: head is stored as emb" in out and "wrote 172 B" in out
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_export_takes_one_dtype_and_patterns_before_it(ckpt, zero3, tmp_path):
    options = ["--dtype", "bfloat16", "--dtype-for", "layers.1.*=float16", "--dtype-for", "layers.*=float64"]
    assert ckpt("export", zero3, "-o", tmp_path / "out", *options)[0] == 0
    expected = {name: value.bfloat16() for name, value in inputs.weights().items()}
    expected["layers.0.w"] = inputs.weights()["layers.0.w"].double()
    expected["layers.1.w"] = inputs.weights()["layers.1.w"].half()
    kept = {name: all_weights()[name] for name in ("frozen", "buffer")}
    assert same(exported(tmp_path / "out"), {**expected, **kept})


def test_export_includes_and_excludes_by_patterns(ckpt, zero3, tmp_path):
    options = ["--include", "layers.*", "--include", "bias", "--exclude", "*.1.*"]
    assert ckpt("export", zero3, "-o", tmp_path / "out", *options)[0] == 0
    assert exported(tmp_path / "out").keys() == {"layers.0.w", "bias"}


def test_export_cuts_shards_and_writes_an_index(ckpt, zero3, tmp_path):
    assert ckpt("export", zero3, "-o", tmp_path / "out", "--max-shard-size", "100B")[0] == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1 and index["metadata"]["total_size"] == 172
    found = {name: value for file in files for name, value in load_file(tmp_path / "out" / file).items()}
    assert same(found, all_weights())
    assert ckpt("export", zero3, "-o", tmp_path / "one", "--max-shard-size", "0")[0] == 0
    assert same(exported(tmp_path / "one"), all_weights())


@pytest.mark.parametrize("name, file", [("out", "out/pytorch_model.bin"), ("out/w.pt", "out/w.pt")])
def test_export_as_torch_is_loaded_by_torch_with_tied_weights_sharing_memory(ckpt, zero3, tmp_path, name, file):
    assert ckpt("export", zero3, "-o", tmp_path / name, "--format", "torch")[0] == 0
    found = torch.load(tmp_path / file, weights_only=True)
    assert found["head"].data_ptr() == found["emb"].data_ptr()
    assert same({n: v for n, v in found.items() if n != "head"}, all_weights())


def test_export_copies_config_and_tokenizer_when_told_where_they_are(ckpt, zero3, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    files = {"config.json": '{"model_type": "of nobody"}', "tokenizer.json": "{}", "vocab.txt": "a"}
    for name, text in {**files, "model.safetensors": "old weights", "notes.txt": "mine"}.items():
        (source / name).write_text(text)
    status, out, _ = ckpt("export", zero3, "-o", tmp_path / "out", "--config-from", source)
    assert status == 0 and str(tmp_path / "out" / "config.json") in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, "model.safetensors"}
    assert same(exported(tmp_path / "out"), all_weights())
    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "out" / "config.json").write_text("another")
    status, _, err = ckpt("export", zero3, "-o", tmp_path / "out", "--config-from", source)
    assert status == 2 and "config.json: expected no file of this name" in err
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert ckpt("export", zero3, "-o", tmp_path / "out", "--config-from", source, "--force")[0] == 0
    assert (tmp_path / "out" / "config.json").read_text() == files["config.json"]
    status, _, err = ckpt("export", zero3, "-o", tmp_path / "w.pt", "--format", "torch", "--config-from", source)
    assert status == 2 and "is one file" in err


def test_export_compares_the_weights_with_the_model_whose_config_goes_with_them(ckpt, zero3, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    own = {name: value.contiguous() for name, value in all_weights().items()}
    wide = {name: torch.zeros(*value.shape[:-1], 77) if value.ndim else value for name, value in own.items()}
    deep = {**own, "another.weight": torch.zeros(2)}
    for model, found in ((wide, "its config.json describes another model"), (deep, '"another.weight" the first')):
        save_file(model, source / "model.safetensors")
        status, _, err = ckpt("export", zero3, "-o", tmp_path / "out", "--config-from", source)
        assert status == 2 and found in err and "name the folder of the model that was trained" in err, err
        assert not (tmp_path / "out").exists()
    save_file(own, source / "model.safetensors")
    assert ckpt("export", zero3, "-o", tmp_path / "out", "--config-from", source)[0] == 0
    save_file(deep, source / "model.safetensors")
    one = next(iter(own))
    status = ckpt("export", zero3, "-o", tmp_path / "part", "--config-from", source, "--include", one)[0]
    assert status == 0, "a part is what was asked for"


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda base: base, ""),
        (lambda base: {**base, "pooler.weight": torch.zeros(3)}, ""),
        (
            lambda base: {**base, "layers.2.w": torch.zeros(2, 3)},
            '1 tensors are there and not in the checkpoint, "layers.2.w"',
        ),
        (
            lambda base: {name: value for name, value in base.items() if "1" not in name},
            'in the checkpoint and not there, "bert.layers.1.w"',
        ),
        (
            lambda base: {**base, "layers.1.w": torch.zeros(2, 4)},
            '"layers.1.w" is 2x4 there, and 2x3 in the checkpoint',
        ),
    ],
    ids=["its own", "a pooler more", "a layer more", "a layer less", "wider"],
)
def test_the_model_may_be_the_base_of_the_one_that_was_trained(ckpt, tmp_path, change, found):
    base = {"emb.weight": torch.zeros(5, 3), **{f"layers.{i}.w": torch.zeros(2, 3) for i in range(2)}}
    source, trained = tmp_path / "source", tmp_path / "trained.safetensors"
    source.mkdir()
    (source / "config.json").write_text("{}")
    save_file({**{f"bert.{name}": value for name, value in base.items()}, "head.weight": torch.zeros(5)}, trained)
    save_file(change(base), source / "model.safetensors")
    status, _, err = ckpt("export", trained, "-o", tmp_path / "out", "--config-from", source)
    assert (status, found in err) == (2 if found else 0, True), err


# ---- reshard, universal, convert-optimizer -------------------------------------------------------


def test_reshard_takes_world_size_sub_group_size_and_tags(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run")
    inputs.zero3(run, ranks=1, tag="step9")
    options = ["--tag", "step7", "--world-size", 3, "--sub-group-size", 1, "--new-tag", "moved"]
    status, out, _ = ckpt("reshard", run, "-o", tmp_path / "out", *options)
    assert status == 0 and re.search("takes? the client state .* of rank r % 2", out)
    assert (tmp_path / "out" / "latest").read_text() == "moved"
    assert len(list((tmp_path / "out" / "moved").glob("*_optim_states.pt"))) == 3
    assert len(optimizer_of(tmp_path / "out")["fp32_flat_groups"]) == 4
    assert ckpt("diff", run, tmp_path / "out", "--tag-a", "step7")[0] == 0


@pytest.mark.parametrize("verb, options", [("export", []), ("reshard", ["--world-size", 3]), ("universal", [])])
@pytest.mark.parametrize("below", ["", "more"])
def test_nothing_is_written_between_the_ranks_files_of_the_source(ckpt, tmp_path, verb, options, below):
    """Before: `inspect run/step7` then showed what was written there, and no more the ranks' files beside it."""
    run = inputs.zero3(tmp_path / "run")
    before = sorted(run.rglob("*"))
    tag = run / (run / "latest").read_text()
    for force in ([], ["--force"]):
        status, _, err = ckpt(verb, run, "-o", tag / below, *options, *force)
        said = (
            "another kind, got a ZeRO-3"
            if verb == "universal" and not below
            else "folder of the ranks' files of the source"
        )
        assert status == 2 and said in err
    assert [path for path in sorted(run.rglob("*")) if path.name != "more"] == before


@pytest.mark.parametrize("verb", ["export", "reshard", "verify"])
def test_more_threads_than_there_can_be_are_refused_in_a_line(ckpt, zero3, tmp_path, verb):
    """Before: a TypeError of the binding."""
    more = {"export": ["-o", tmp_path / "o"], "reshard": ["-o", tmp_path / "o", "--world-size", 1], "verify": []}[verb]
    status, _, err = ckpt(verb, zero3, *more, "--threads", "99999999999")
    assert status == 2 and 'got "99999999999", expected a whole number of at least 0 and at most 65536' in err


def test_a_shard_of_less_than_a_byte_is_refused(ckpt, zero3, tmp_path):
    status, _, err = ckpt("export", zero3, "-o", tmp_path / "o", "--max-shard-size", "0.5")
    assert status == 2 and 'got "0.5", expected a whole number of bytes' in err


def test_a_checkpoint_of_finetune_that_is_written_over_loses_its_mark_first(ckpt, zero3, tmp_path):
    assert ckpt("reshard", zero3, "-o", tmp_path / "out", "--world-size", 2)[0] == 0
    tag = tmp_path / "out" / (tmp_path / "out" / "latest").read_text()
    (tag / "whole.json").write_text("{}")
    assert ckpt("reshard", zero3, "-o", tmp_path / "out", "--world-size", 2)[0] == 2
    assert (tag / "whole.json").exists(), "refused: nothing is changed"
    assert ckpt("reshard", zero3, "-o", tmp_path / "out", "--world-size", 2, "--force")[0] == 0
    assert not (tag / "whole.json").exists()


def test_there_and_back_gives_every_rank_its_tensors_again(ckpt, zero3, tmp_path):
    assert ckpt("reshard", zero3, "-o", tmp_path / "three", "--world-size", 3)[0] == 0
    assert ckpt("reshard", tmp_path / "three", "-o", tmp_path / "two", "--world-size", 2)[0] == 0
    for rank in (0, 1):
        before, after = optimizer_of(zero3, rank), optimizer_of(tmp_path / "two", rank)
        real = [torch.isfinite(flat) for flat in before["fp32_flat_groups"]]  # padding is NaN
        for a, b, mask in zip(before["fp32_flat_groups"], after["fp32_flat_groups"], real, strict=True):
            assert torch.equal(a[mask], b[mask]) and a.shape == b.shape


def test_universal_writes_what_reshard_reads(ckpt, zero3, tmp_path):
    assert ckpt("universal", zero3, "-o", tmp_path / "all" / "uni")[0] == 0
    assert torch.equal(
        torch.load(tmp_path / "all" / "uni" / "zero" / "emb" / "exp_avg.pt").flatten(),
        inputs.weights(1)["emb"].flatten(),
    )
    assert (tmp_path / "all" / "latest_universal").is_file()
    assert ckpt("reshard", tmp_path / "all" / "uni", "-o", tmp_path / "one", "--world-size", 1)[0] == 0
    assert ckpt("diff", zero3, tmp_path / "one")[0] == 0


def converted(ckpt, source, out, *options) -> str:
    status, printed, err = ckpt("convert-optimizer", source, "-o", out, *options)
    assert status == 0, err
    return printed


def test_convert_optimizer_says_what_becomes_of_rates_and_what_was_reset(ckpt, zero3, tmp_path):
    roles = inputs.roles_file(tmp_path / "roles.json")
    out = tmp_path / "muon"
    printed = converted(ckpt, zero3, out, "--to", "ZeroMuon", "--roles", roles, "--lr", 0.02, "--adam-lr", 3e-4)
    for words in (
        "note: learning rate: lr 0.02, adam_lr 0.0003",
        "note: the momentum is ema",
        "note: reset: ",
        '"ZeroMuon"',
    ):
        assert words in printed
    entry = optimizer_of(out)["optimizer_state_dict"]["zeromuon"]
    assert entry["options"]["lr"] == 0.02 and entry["options"]["adam_lr"] == pytest.approx(3e-4)
    assert {name for name, role in entry["roles"].items() if role == "muon"} == set(inputs.MUON)
    back = converted(ckpt, out, tmp_path / "adamw", "--to", "AdamW", "--new-tag", "back")
    assert "warm-up" in back and "note: reset: step and exp_avg_sq" in back
    assert (tmp_path / "adamw" / "latest").read_text() == "back"


@pytest.mark.parametrize(
    "option, key, value",
    [("--momentum", "momentum", 0.5), ("--eps", "eps", 1e-6), ("--weight-decay", "weight_decay", 0.25)],
)
def test_convert_optimizer_takes_numbers(ckpt, zero3, tmp_path, option, key, value):
    roles = inputs.roles_file(tmp_path / "roles.json")
    converted(ckpt, zero3, tmp_path / "out", "--to", "ZeroMuon", "--roles", roles, option, value)
    assert optimizer_of(tmp_path / "out")["optimizer_state_dict"]["zeromuon"]["options"][key] == value


def test_convert_optimizer_divides_exp_avg_by_its_bias_with_the_beta1_given(ckpt, zero3, tmp_path):
    roles = inputs.roles_file(tmp_path / "roles.json")
    options = [
        "--to",
        "ZeroMuon",
        "--roles",
        roles,
        "--beta1",
        0.5,
        "--beta2",
        0.75,
        "--momentum-kind",
        "heavy_ball",
        "--momentum",
        0.9,
    ]
    converted(ckpt, zero3, tmp_path / "out", *options)
    packed = optimizer_of(tmp_path / "out")["optimizer_state_dict"]
    assert tuple(packed["zeromuon"]["options"]["betas"]) == (0.5, 0.75)
    assert packed["zeromuon"]["options"]["momentum_kind"] == "heavy_ball"
    expected = inputs._shard(inputs.weights(1)["layers.0.w"], 2, 0).double() / (1 - 0.5**inputs.STEP) / (1 - 0.9)
    assert torch.allclose(packed["state"][0]["exp_avg"][:4].double(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "content, got",
    [
        ("{", "no JSON"),
        ("[]", "format 1"),
        ('{"format": 2, "parameters": []}', "format 1"),
        ('{"format": 1, "parameters": [{"name": "emb"}]}', "parameter 0"),
        (
            '{"format": 1, "parameters": [{"name": "emb", "role": "adamw"}, {"name": "emb", "role": "muon"}]}',
            '"emb" twice',
        ),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
    ],
)
def test_a_roles_file_that_is_none_is_refused(ckpt, zero3, tmp_path, content, got):
    file = tmp_path / "roles.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    status, _, err = ckpt("convert-optimizer", zero3, "-o", tmp_path / "out", "--to", "ZeroMuon", "--roles", file)
    assert status == 2 and got in err and "param_groups(model).save(FILE)" in err


def test_a_model_decides_the_roles_as_zeromuon_does(tmp_path):
    import transformers
    from zeromuon import param_groups
    from zeromuon.ckpt import read_roles, roles_of_model

    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        architectures=["BertForMaskedLM"],
    )
    config.save_pretrained(tmp_path)
    param_groups(transformers.BertForMaskedLM(config)).save(tmp_path / "roles.json")
    found = roles_of_model(tmp_path)
    assert found == read_roles(tmp_path / "roles.json") and set(found.values()) == {"muon", "adamw"}


# ---- sources that are not what their names say ---------------------------------------------------

WRITING = [
    ["export"],
    ["reshard", "--world-size", "3"],
    ["universal"],
    ["convert-optimizer", "--to", "ZeroMuon", "--roles", "R"],
]


@pytest.mark.parametrize("kind", ["model", "optim"])
@pytest.mark.parametrize("words", WRITING, ids=lambda words: words[0])
def test_files_of_ranks_in_each_other_s_place_are_not_copied(ckpt, tmp_path, words, kind):
    """Before: exit status 0, every weight wrong, and `verify` of a resharded copy said ok."""
    folder = inputs.zero3(tmp_path / "run") / inputs.TAG
    first, second = sorted(folder.glob(f"*{kind}_states.pt"))
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    roles = inputs.roles_file(tmp_path / "roles.json")
    given = [roles if word == "R" else word for word in words[1:]]
    status, _, err = ckpt(words[0], tmp_path / "run", "-o", tmp_path / "out", *given)
    assert status == 2 and "written as that of rank 1" in err and not (tmp_path / "out").exists()
    assert ckpt("verify", tmp_path / "run")[1].count("written as that of rank") == 2


@pytest.mark.parametrize("missing", ["one", "all"])
def test_a_universal_checkpoint_without_a_state_is_named(ckpt, zero3, tmp_path, missing):
    """Before: `verify` said ok, and a reshard had no momentum, or blamed another tensor."""
    out = tmp_path / "universal"
    assert ckpt("universal", zero3, "-o", out)[0] == 0 and ckpt("verify", out)[0] == 0
    states = sorted(out.rglob("exp_avg.pt"))
    for file in states if missing == "all" else states[1:2]:
        file.unlink()
    for words in (["verify", out], ["reshard", out, "-o", tmp_path / "out", "--world-size", 2]):
        status, printed, err = ckpt(*words)
        assert status != 0 and "exp_avg.pt" in printed + err and "the file is missing" in printed + err
        assert missing == "all" or states[1].parent.name in printed + err


KILLED_AT_RENAME = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
int rename(const char* from, const char* to) {
  int (*real)(const char*, const char*) = (int (*)(const char*, const char*))dlsym(RTLD_NEXT, "rename");
  int status = real(from, to);
  if (strstr(to, "model-00001-of-")) kill(getpid(), SIGKILL);
  return status;
}
"""


def test_a_kill_as_the_first_file_gets_its_name_is_followed_by_a_resume(ckpt, start, tmp_path):
    source, out, library = (
        inputs.zeros(tmp_path / "zeros.safetensors", 12, 1 << 20),
        tmp_path / "out",
        tmp_path / "k.so",
    )
    (tmp_path / "k.c").write_text(KILLED_AT_RENAME)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "k.c", "-ldl"], check=True)
    words = ["export", source, "-o", out, "--max-shard-size", "4MiB", "--threads", 1]
    command = [sys.executable, "-m", "zeromuon", "ckpt", *map(str, words)]
    process = start(command, env={**os.environ, "LD_PRELOAD": str(library)}, stderr=subprocess.PIPE)
    assert process.wait(timeout=120) == -signal.SIGKILL and (out / "model-00001-of-00003.safetensors").exists()
    status, _, err = ckpt(*words, "--resume")
    assert status == 0, err
    assert ckpt("diff", source, out)[0] == 0 and not (out / ".zeromuon-journal").exists()


# ---- overwriting and being stopped ---------------------------------------------------------------


@pytest.mark.parametrize(
    "verb, options",
    [("export", []), ("export", ["--format", "torch"]), ("reshard", ["--world-size", 3]), ("universal", [])],
)
def test_an_output_that_exists_is_replaced_only_with_force(ckpt, zero3, tmp_path, verb, options):
    command = [verb, zero3, "-o", tmp_path / "all" / "out", *options]
    assert ckpt(*command)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*") if path.is_file()}
    status, _, err = ckpt(*command)
    assert status == 2 and "--force" in err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert ckpt(*command, "--force")[0] == 0


def test_a_second_export_into_a_folder_that_is_being_written_is_refused_and_the_first_is_whole(ckpt, start, tmp_path):
    source, out = tmp_path / "ones.safetensors", tmp_path / "out"
    save_file({f"t{i}": torch.full((1 << 20,), float(i + 1)) for i in range(48)}, source)
    command = [sys.executable, "-m", "zeromuon", "ckpt", "export", str(source), "-o", str(out), "--threads", "1"]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = start([*command, "--max-memory", "1MiB"], **given)
    while not any(file.stat().st_blocks for file in out.glob("*model*")):
        assert first.poll() is None, first.stderr.read()
    first.send_signal(signal.SIGSTOP)
    second = start(command, **given)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2 and "in use by" in err and str(first.pid) in err, err
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=120) == 0
    assert ckpt("diff", source, out)[0] == 0


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_whole_files_only_and_resume_goes_on(ckpt, start, tmp_path, number, status):
    source, out = inputs.zeros(tmp_path / "zeros.safetensors", 60, 8 << 20), tmp_path / "out"
    options = ["--dtype", "bfloat16", "--max-shard-size", "4MiB", "--max-memory", "1MiB", "--threads", 1]
    command = [sys.executable, "-m", "zeromuon", "ckpt", "export", source, "-o", out, *options]
    process = start([*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list(out.glob("model-*.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    left = sorted(path.name for path in out.iterdir())
    finished = [name for name in left if name.startswith("model-")]
    assert left == [".zeromuon-journal", *finished] and 1 <= len(finished) < 60
    assert all((out / name).stat().st_size > 4 << 20 for name in finished)
    assert f"interrupted; {len(finished)} file" in err and "Traceback" not in err
    hint = shlex.split(err.strip().splitlines()[-1].partition("go on with: ")[2])
    assert hint[:2] == ["zeromuon", "ckpt"] and hint[-1] == "--resume"
    code, printed, err = ckpt(*hint[2:])
    assert code == 0 and f"{len(finished)} kept from the run before" in printed, err
    assert ckpt("diff", source, out)[1].count("the same values") == 60
    assert not (out / ".zeromuon-journal").exists()


def test_nobody_reading_the_output_is_no_traceback(start, tmp_path):
    save_file({f"t{i}.{'x' * 200}": torch.zeros(1) for i in range(2000)}, tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "zeromuon", "ckpt", "inspect", str(tmp_path / "m.safetensors"), "--all"]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_when_all_is_written_does_not_hide_it(ckpt, zero3, tmp_path, monkeypatch, number):
    from zeromuon.ckpt import writing

    def written_and_signalled(*arguments, **options):
        found = reshard(*arguments, **options)
        os.kill(os.getpid(), number)
        return found

    reshard = writing.reshard
    monkeypatch.setattr(writing, "reshard", written_and_signalled)
    before = signal.getsignal(number)
    status, printed, err = ckpt("reshard", zero3, "-o", tmp_path / "out", "--world-size", 3)
    assert (status, err) == (0, "") and "wrote" in printed
    assert signal.getsignal(number) == before
    assert ckpt("diff", zero3, tmp_path / "out")[0] == 0
