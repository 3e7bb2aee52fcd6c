"""Paths and names that are no UTF-8, and a stdout that takes no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from tests.python.ckpt import command_inputs as inputs
from zeromuon import ckpt

BYTE = os.fsdecode(b"\xff")


def run(*arguments, stdout=subprocess.PIPE, **environment) -> subprocess.CompletedProcess:
    """The command as a process of its own: (returncode, stdout, stderr) as bytes."""
    command = [sys.executable, "-m", "zeromuon", "ckpt", *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def zero3(tmp_path_factory) -> Path:
    return inputs.zero3(tmp_path_factory.mktemp("zero3") / "run")


# ---- paths ---------------------------------------------------------------------------------------


def test_paths_that_are_no_utf8_work_in_and_out(zero3, tmp_path):
    output = tmp_path / f"o{BYTE}"
    done = run("export", zero3, "-o", output, "-q")
    assert done.returncode == 0 and rb"o\xff/model.safetensors" in done.stdout, done.stderr
    assert "emb" in load((output / "model.safetensors").read_bytes())
    for verb in ("inspect", "verify"):
        assert run(verb, output).returncode == 0
    found = json.loads(run("inspect", output, "--json").stdout)
    assert found["path"] == str(output) and found["files"] == [str(output / "model.safetensors")]
    assert ckpt.inspect(output) == {**found, "tensors": ckpt.inspect(output)["tensors"]}
    assert ckpt.diff(output, zero3, states=False)["same"]
    written = ckpt.reshard(zero3, tmp_path / f"r{BYTE}", 3)
    assert all(Path(file).is_file() for file in written["files"])
    assert ckpt.verify(tmp_path / f"r{BYTE}")["ok"]


def test_a_path_that_is_no_utf8_is_named_in_errors(tmp_path):
    file = tmp_path / f"m{BYTE}.safetensors"
    file.write_bytes(b"")
    for path in (file, tmp_path / f"nowhere{BYTE}"):
        done = run("inspect", path)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert os.fsencode(path).replace(b"\xff", rb"\xff") in done.stderr
    with pytest.raises(ckpt.FormatError) as raised:
        ckpt.inspect(file)
    assert raised.value.file == str(file)


@pytest.mark.parametrize(
    "arguments",
    [
        ["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", BYTE],
        ["universal", "-o", f"OUT/u{BYTE}"],
        ["inspect", "--tag", BYTE],
        ["export", "-o", "OUT", "--include", BYTE],
        ["export", "-o", "OUT", "--dtype", BYTE],
        ["export", "-o", "OUT", "--dtype-for", f"{BYTE}={BYTE}"],
    ],
)
def test_an_option_that_is_no_utf8_is_one_plain_error(zero3, tmp_path, arguments):
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    done = run(arguments[0], zero3, *arguments[1:])
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1, done.stderr
    assert rb"\xff" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ckpt.inspect("/", tag="\ud800"),
        lambda: ckpt.export("/", "o\0ut"),
        lambda: ckpt.export("/", "\ud800"),
        lambda: ckpt.export("/", "o", include="\ud800"),
        lambda: ckpt.export("/", "o", dtype=3),
        lambda: ckpt.convert_optimizer("/", "o", "AdamW", roles={3: "muon"}),
    ],
)
def test_arguments_that_no_file_can_have_are_value_errors(call):
    with pytest.raises(ValueError, match="got"):
        call()


# ---- names in files ------------------------------------------------------------------------------


def test_a_tensor_name_that_is_no_utf8_names_file_and_tensor(tmp_path):
    file = tmp_path / "m.pt"
    torch.save({f"w{BYTE}": torch.zeros(3)}, file)
    done = run("inspect", file)
    assert done.returncode == 2 and os.fsencode(file) in done.stderr and rb'in UTF-8, got "w\x' in done.stderr
    done = run("verify", file, "-q")
    assert done.returncode == 1 and b"problem 1 of 1" in done.stdout
    with pytest.raises(ckpt.FormatError, match="UTF-8") as raised:
        ckpt.export(file, tmp_path / "out")
    assert raised.value.file == str(file) and not (tmp_path / "out").exists()


def test_a_name_of_zero3_that_is_no_utf8_names_the_model_file(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SHAPES", [{f"w{BYTE}": (4, 2)}])
    run_folder = inputs.zero3(tmp_path / "run", ranks=1)
    (problem,) = ckpt.verify(run_folder)["problems"]
    assert problem["file"].endswith("zero_pp_rank_0_mp_rank_00_model_states.pt") and "UTF-8" in problem["expected"]


def test_a_latest_that_is_no_utf8_is_an_error_of_that_file(tmp_path):
    run_folder = inputs.zero3(tmp_path / "run")
    (run_folder / "latest").write_bytes(b"step\xff")
    done = run("inspect", run_folder)
    assert done.returncode == 2 and b"run/latest: " in done.stderr and rb'"step\xff"' in done.stderr
    (problem,) = ckpt.verify(run_folder)["problems"]
    assert problem["file"] == str(run_folder / "latest") and problem["got"] == f'"step{BYTE}"'


def test_names_that_the_terminal_cannot_say_are_escaped(tmp_path):
    save_file({"wé": torch.zeros(3)}, tmp_path / "m.safetensors")
    for verb in ("inspect", "verify"):
        done = run(verb, tmp_path / "m.safetensors", PYTHONIOENCODING="ascii")
        assert done.returncode == 0 and rb"w\xe9" in done.stdout, done.stderr


# ---- stdout --------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "verb, more, words",
    [
        ("inspect", [], b""),
        ("inspect", ["--json"], b""),
        ("verify", ["-q"], b""),
        ("verify", ["-q", "--json"], b""),
        ("export", ["-q", "-o", "OUT"], b"out itself is complete"),
    ],
)
def test_a_stdout_that_cannot_be_written_is_one_plain_error(zero3, tmp_path, verb, more, words):
    more = [str(tmp_path / "out") if word == "OUT" else word for word in more]
    with open("/dev/full", "wb") as full:
        done = run(verb, zero3, *more, stdout=full)
    assert done.returncode == 2 and done.stderr.startswith(b"error: standard output: "), done.stderr
    assert done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr and words in done.stderr
