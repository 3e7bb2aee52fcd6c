"""`zeromuon ckpt`: every option, what is printed, exit statuses, and that it starts without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.python.ckpt import command_inputs as inputs
from zeromuon.commands import cli


@pytest.fixture
def ckpt(capsys):
    """Runs `zeromuon ckpt ARGUMENTS`: (exit status, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        status = cli.main(["ckpt", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def zero3(tmp_path_factory) -> Path:
    return inputs.zero3(tmp_path_factory.mktemp("zero3") / "run")


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


def all_weights() -> dict[str, torch.Tensor]:
    return {**inputs.weights(), "frozen": torch.arange(7.0), "buffer": torch.arange(3.0)}


# ---- starting ------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "deepspeed", "transformers", "safetensors"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from zeromuon.commands import cli
source, out, roles = sys.argv[1:]
for arguments in (
    ["--help"], ["inspect", source], ["verify", source], ["diff", source, source], ["export", source, "-o", out + "/e"],
    ["reshard", source, "-o", out + "/r", "--world-size", "3"], ["universal", source, "-o", out + "/u"],
    ["convert-optimizer", source, "-o", out + "/c", "--to", "ZeroMuon", "--roles", roles],
):
    assert cli.main(["ckpt", *arguments]) == 0, arguments
import zeromuon
assert set(zeromuon.ckpt.__all__) <= set(dir(zeromuon.ckpt)) and zeromuon.ckpt.inspect(source)["world_size"] == 2
assert all(callable(getattr(zeromuon.ckpt, name)) for name in zeromuon.ckpt.__all__)
"""


def test_every_verb_and_the_functions_run_without_torch_deepspeed_and_numpy(zero3, tmp_path):
    roles = inputs.roles_file(tmp_path / "roles.json")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, zero3, tmp_path, roles], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_whole_process_starts_without_torch(zero3):
    command = [sys.executable, "-X", "importtime", "-m", "zeromuon", "ckpt", "inspect", zero3]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "ZeRO-3" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "zeromuon" in imported and not imported & {"torch", "numpy", "deepspeed", "transformers"}


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect_tells_kind_ranks_steps_and_tensors(ckpt, zero3):
    status, out, _ = ckpt("inspect", zero3)
    assert status == 0
    for fact in (
        "kind .* ZeRO-3",
        "tag .* step7",
        "world size .* 2",
        "optimizer .* AdamW",
        "global steps .* 7",
        "ds version .* 0.19.8",
        "tied: head is emb",
        "frozen: 1 tensors, 0.000 M elements, 28 B",
    ):
        assert re.search(fact.replace(" .* ", r"\s+"), out), (fact, out)
    assert re.search(r"emb +5x3 +float32 +60 B +exp_avg float32, exp_avg_sq float32", out)


def test_inspect_folds_names_that_differ_by_a_number_and_all_unfolds_them(ckpt, tmp_path):
    save_file({f"layers.{i}.w": torch.zeros(2, 3) for i in range(12)}, tmp_path / "m.safetensors")
    folded, unfolded = (
        ckpt("inspect", tmp_path / "m.safetensors")[1],
        ckpt("inspect", tmp_path / "m.safetensors", "--all")[1],
    )
    assert re.search(r"12 +layers\.\[0-11\]\.w +2x3 +float32 +288 B", folded)
    assert all(f"layers.{i}.w" in unfolded for i in range(12)) and "[0-11]" not in unfolded


def test_inspect_json_is_what_the_function_returns(ckpt, zero3):
    from zeromuon.ckpt import inspect

    found = json.loads(ckpt("inspect", zero3, "--json")[1])
    assert found == json.loads(json.dumps(inspect(zero3))) and found["aliases"] == {"head": "emb"}


def test_a_name_from_a_file_cannot_steer_the_terminal(ckpt, tmp_path):
    save_file({"\x1b[2Jw": torch.zeros(2)}, tmp_path / "m.safetensors")
    out = "".join(ckpt(verb, tmp_path / "m.safetensors")[1] for verb in ("inspect", "verify"))
    assert "\x1b" not in out and r"\x1b[2Jw" in out


@pytest.mark.parametrize("names", [("a.*.w", "a.3.w"), ("a.1.w", "a.01.w"), ("a.²", "a.٣"), ("a." + "9" * 5000, "a.2")])
def test_strange_numbers_in_names_are_no_trouble(ckpt, tmp_path, names):
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "m.safetensors")
    assert ckpt("inspect", tmp_path / "m.safetensors")[0] == 0


def test_a_tag_chooses_the_folder(ckpt, tmp_path):
    inputs.zero3(tmp_path / "run")
    inputs.zero3(tmp_path / "run", ranks=3, tag="step9")
    assert json.loads(ckpt("inspect", tmp_path / "run", "--json")[1])["tag"] == "step9"
    found = json.loads(ckpt("inspect", tmp_path / "run", "--tag", "step7", "--json")[1])
    assert (found["tag"], found["world_size"]) == ("step7", 2)


# ---- verify --------------------------------------------------------------------------------------


def test_verify_of_a_good_checkpoint_shows_norms_and_returns_0(ckpt, zero3):
    status, out, err = ckpt("verify", zero3)
    assert status == 0 and out.splitlines()[-1].startswith("ok: ") and err == ""
    norms = [float(line.split()[0]) for line in out.splitlines()[1:11]]
    assert norms == sorted(norms, reverse=True) and "more, of smaller norm: --all shows them" in out
    everything = ckpt("verify", zero3, "--all")[1]
    assert everything.count("exp_avg_sq") == 4 and "more, of" not in everything


def test_verify_json_has_the_norm_of_every_tensor(ckpt, zero3):
    found = json.loads(ckpt("verify", zero3, "--json")[1])
    norms = {health["name"]: health["norm"] for health in found["tensors"] if health["part"] == "value"}
    assert found["ok"] and norms.keys() == all_weights().keys()
    assert norms["emb"] == pytest.approx(inputs.weights()["emb"].double().norm().item(), rel=1e-12)


def test_verify_names_file_offset_expected_got_and_remedy_and_returns_1(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run")
    file = run / inputs.TAG / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(file.read_bytes())
    at = content.find(inputs._shard(inputs.weights()["emb"], 2, 1)[:4].numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    status, out, _ = ckpt("verify", run)
    assert status == 1 and "problem 1 of 1" in out and out.splitlines()[-1].startswith("1 problem found: ")
    for label in ("file", "offset", "expected", "got", "remedy"):
        assert re.search(rf"^  {label} +\S", out, re.MULTILINE), label
    assert str(file) in out
    assert ckpt("verify", run, "--no-crc")[0] == 0
    found = json.loads(ckpt("verify", run, "--json")[1])
    assert not found["ok"] and found["problems"][0]["offset"] <= at


def test_verify_lists_a_tensor_with_nan_first(ckpt, tmp_path):
    broken = torch.tensor([1.0, float("nan"), float("inf")])
    save_file({"big": torch.full((4,), 1e6), "small": broken}, tmp_path / "m.safetensors")
    status, out, _ = ckpt("verify", tmp_path / "m.safetensors")
    assert status == 1 and re.search(r"norm .*\n +1 +1 +1 +value +small\n", out)


def test_a_missing_rank_is_a_problem_for_verify_and_an_error_for_the_rest(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run")
    (run / inputs.TAG / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    status, out, _ = ckpt("verify", run)
    assert status == 1 and "rank" in out
    status, out, err = ckpt("export", run, "-o", tmp_path / "out")
    assert status == 2 and out == "" and err.startswith("error: ") and not (tmp_path / "out").exists()


# ---- diff ----------------------------------------------------------------------------------------


def test_diff_is_by_names_across_formats_and_world_sizes(ckpt, zero3, tmp_path):
    assert ckpt("reshard", zero3, "-o", tmp_path / "three", "--world-size", 3)[0] == 0
    assert ckpt("universal", zero3, "-o", tmp_path / "u" / "uni")[0] == 0
    for other in (tmp_path / "three", tmp_path / "u" / "uni"):
        status, out, _ = ckpt("diff", zero3, other)
        assert status == 0 and out.startswith("same: "), out


def test_diff_says_in_words_what_differs_and_returns_1(ckpt, tmp_path):
    base = {"w": torch.zeros(2, 3), "v": torch.ones(4), "u": torch.ones(2), "s": torch.ones(2, 3)}
    save_file(base, tmp_path / "a.safetensors")
    save_file(
        {**base, "w": torch.eye(2, 3) / 2, "u": torch.ones(2).bfloat16(), "s": torch.ones(3, 2), "x": torch.ones(1)},
        tmp_path / "b.safetensors",
    )
    status, out, _ = ckpt("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 1
    assert out.splitlines() == [
        "only in B: x",
        "s: shape (2, 3) in A, (3, 2) in B",
        "u: float32 in A, bfloat16 in B, the same values",
        "w: 2 elements differ, by at most 0.5 (relative 1)",
        "3 different, 1 in one only: 4 tensors and states compared, 1 equal",
    ]
    found = json.loads(ckpt("diff", tmp_path / "b.safetensors", tmp_path / "a.safetensors", "--json")[1])
    assert found["only_in_a"] == ["x"] and not found["same"]


def test_diff_takes_a_tag_for_each_side_and_may_leave_states_out(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run")
    inputs.zero3(run, ranks=3, tag="step9")
    assert ckpt("diff", run, run, "--tag-a", "step7", "--tag-b", "step9")[0] == 0
    with_states = json.loads(ckpt("diff", run, run, "--tag", "step7", "--json")[1])["compared"]
    without = json.loads(ckpt("diff", run, run, "--no-states", "--json")[1])["compared"]
    assert with_states - without == 8


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["inspekt", "x"], 'did you mean "inspect"'),
        (["inspect"], "required: PATH"),
        (["inspect", "nowhere"], "nowhere: expected a file or folder, got nothing there"),
        (["verify", "nowhere"], "nowhere: expected a file or folder, got nothing there"),
        (["inspect", "x", "--jsn"], 'unknown argument "--jsn"; did you mean "--json"?'),
        (["export", "x"], "required: -o/--output"),
        (["export", "x", "-o", "y", "--format", "gguf"], "--format: invalid choice"),
        (["export", "x", "-o", "y", "--dtype-for", "float32"], "expected GLOB=DTYPE"),
        (["export", "x", "-o", "y", "--max-shard-size", "5 apples"], "expected a size such as 5GB"),
        (["export", "x", "-o", "y", "--max-memory", "-1"], "--max-memory"),
        (["verify", "x", "--max-memory", "10KB"], 'argument --max-memory: got "10KB", expected at least 1MiB'),
        (["inspect", "x", "--tag", ""], 'argument --tag: got "", expected the name of a folder'),
        (["diff", "x", "y", "--tag-b", ""], 'argument --tag-b: got ""'),
        (["reshard", "x", "-o", "y", "--world-size", "2", "--new-tag", ""], 'argument --new-tag: got ""'),
        (["convert-optimizer", "x", "-o", "y", "--to", "AdamW", "--lr", "-3"], "argument --lr: got"),
        (["convert-optimizer", "x", "-o", "y", "--to", "AdamW", "--adam-lr", "nan"], "argument --adam-lr: got"),
        (["convert-optimizer", "x", "-o", "y", "--to", "AdamW", "--eps", "inf"], "argument --eps: got"),
        (["convert-optimizer", "x", "-o", "y", "--to", "AdamW", "--lr", "fast"], "a finite number of at least 0"),
        (["export", "x", "-o", "y", "--threads", "two"], "expected a whole number of at least 0"),
        (["reshard", "x", "-o", "y", "--world-size", "0"], "expected a whole number of at least 1"),
        (["convert-optimizer", "x", "-o", "y", "--to", "Lion"], "--to: invalid choice"),
        (["convert-optimizer", "x", "-o", "y", "--to", "AdamW", "--roles", "a", "--model", "b"], "not allowed with"),
    ],
)
def test_bad_options_are_one_plain_error_and_status_2(ckpt, arguments, words):
    status, out, err = ckpt(*arguments)
    assert status == 2 and out == "" and words in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["export", "-o", "OUT.pt"],
            "OUT.pt: export writes a folder, and this name ends in .pt; name a folder, or say --format torch",
        ),
        (["export", "-o", "OUT.safetensors"], "name a folder, the weights in it are model.safetensors"),
        (["export", "-o", "OUT.ckpt", "--format", "torch"], "or one file that ends in .pt, .pth or .bin"),
        (
            ["export", "-o", "OUT", "--dtype-for", "layer.*=bfloat16"],
            '--dtype-for: expected a pattern that matches a tensor, got "layer.*", which matches none of 7 names; near it: layers.0.w, layers.1.w',
        ),
        (["export", "-o", "OUT", "--include", "emb", "--include", "embb"], "--include: expected a pattern"),
        (["export", "-o", "OUT", "--exclude", "zzz"], "`zeromuon ckpt inspect --all` lists the names"),
        (
            ["export", "-o", "OUT", "--include", "emb", "--exclude", "*"],
            "leave no tensor of 6; widen --include, or drop an --exclude",
        ),
        (["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", "latest"], 'got "latest", the file beside it'),
        (
            ["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", "latest_universal"],
            "choose another name with --new-tag",
        ),
        (
            ["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", "."],
            'got "."; choose another name with --new-tag',
        ),
        (
            ["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", ".."],
            'got ".."; choose another name with --new-tag',
        ),
        (
            ["reshard", "-o", "OUT", "--world-size", "3", "--new-tag", "a/b"],
            'got "a/b"; choose another name with --new-tag',
        ),
        (
            ["convert-optimizer", "-o", "OUT", "--to", "ZeroMuon", "--roles", "ROLES", "--new-tag", "latest"],
            "--new-tag: ",
        ),
        (
            ["convert-optimizer", "-o", "OUT", "--to", "ZeroMuon", "--roles", "ROLES", "--beta2", "1"],
            "--beta2: expected a number in [0, 1), got 1",
        ),
        (["universal", "-o", "OUT/latest_universal"], '-o: expected the name of a folder, got "latest_universal"'),
        (["export", "-o", "OUT", "--dtype", "int3"], "dtype: expected float32, bfloat16"),
        (["export", "-o", "OUT", "--config-from", "nowhere"], "without config.json"),
        (["inspect", "--tag", "step8"], "step8"),
        (["convert-optimizer", "-o", "OUT", "--to", "ZeroMuon"], "pass --roles FILE"),
        (["convert-optimizer", "-o", "OUT", "--to", "AdamW"], "is an AdamW checkpoint already"),
        (
            ["convert-optimizer", "-o", "OUT", "--to", "ZeroMuon", "--model", "nowhere"],
            "expected a folder with config.json",
        ),
        (["convert-optimizer", "-o", "OUT", "--to", "ZeroMuon", "--roles", "nowhere"], "No such file"),
    ],
)
def test_options_that_do_not_fit_the_checkpoint_are_errors_and_write_nothing(ckpt, zero3, tmp_path, arguments, words):
    out = tmp_path / "out"
    inputs.roles_file(tmp_path / "roles.json")
    arguments = [word.replace("OUT", str(out)).replace("ROLES", str(tmp_path / "roles.json")) for word in arguments]
    status, printed, err = ckpt(arguments[0], zero3, *arguments[1:])
    assert status == 2 and printed == "" and words.replace("OUT", str(out)) in err, err
    assert os.listdir(tmp_path) == ["roles.json"]


def test_an_error_about_a_tag_names_the_option_that_chooses_it(ckpt, zero3, tmp_path):
    for side in ("a", "b"):
        status, _, err = ckpt("diff", zero3, zero3, f"--tag-{side}", "nope")
        assert status == 2 and f"check --tag-{side} (or --tag)" in err
    run = inputs.zero3(tmp_path / "run")
    err = ckpt("reshard", run, "-o", run, "--world-size", 1, "--force")[2]
    assert err.endswith("choose another output or --new-tag\n")


def test_a_tag_of_what_has_no_tags_is_an_error(ckpt, zero3, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "m.pt")
    assert ckpt("universal", zero3, "-o", tmp_path / "u" / "uni")[0] == 0
    for path, kind in (("m.safetensors", "safetensors"), ("", "safetensors"), ("m.pt", "torch"), ("u", "universal")):
        for verb in ("inspect", "verify"):
            status, _, err = ckpt(verb, tmp_path / path, "--tag", "step2")
            assert status == 2 and f'a {kind} checkpoint has no tags, got --tag "step2"; leave --tag out' in err


def test_a_tag_is_enough_where_latest_is_missing(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run")
    (run / "latest").unlink()
    assert ckpt("inspect", run, "--tag", inputs.TAG)[0] == 0


def test_the_tag_of_a_folder_that_is_named_by_a_dot_is_its_name(ckpt, zero3, tmp_path, monkeypatch):
    monkeypatch.chdir(zero3 / inputs.TAG)
    assert ckpt("reshard", ".", "-o", tmp_path / "out", "--world-size", 1)[0] == 0
    assert (tmp_path / "out" / "latest").read_text() == inputs.TAG


def test_a_dtype_may_be_asked_for_by_the_tied_name(ckpt, zero3, tmp_path):
    assert ckpt("export", zero3, "-o", tmp_path / "e", "--dtype-for", "head=bfloat16")[0] == 0
    assert exported(tmp_path / "e")["emb"].dtype == torch.bfloat16


# ---- not a checkpoint ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "notes.txt",
            b"a plain text",
            "got a file that begins like none of them; name the file or folder of a checkpoint",
        ),
        ("m.safetensors", b"a plain text", "begins like none of them"),
        (
            "m.pt",
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS to one; get the file itself: git lfs pull",
        ),
        ("m.safetensors", b"PK\3\4", "give it a name that ends in .pt or .bin"),
        ("blob", b"\2\0\0\0\0\0\0\0{}", "a name that ends in .safetensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_not_called_damaged(ckpt, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    status, _, err = ckpt("inspect", tmp_path / name)
    assert status == 2 and words in err and "damaged" not in err


def test_latest_and_the_folder_of_a_run_are_answered_with_the_checkpoint(ckpt, tmp_path):
    run = inputs.zero3(tmp_path / "run" / "checkpoints")
    (run.parent / "model").mkdir()
    save_file({"w": torch.zeros(2)}, run.parent / "model" / "model.safetensors")
    assert ckpt("inspect", run / "latest")[2].endswith(f"name its folder: {run}\n")
    assert ckpt("inspect", run.parent)[2].endswith(f"name {run}, a ZeRO-3 checkpoint\n")


@pytest.mark.parametrize("verb", ["inspect", "verify", "diff", "export", "reshard", "universal", "convert-optimizer"])
def test_a_verb_without_ckpt_is_answered_with_ckpt(capsys, verb):
    assert cli.main([verb, "x"]) == 2
    assert f'did you mean "zeromuon ckpt {verb}"?' in capsys.readouterr().err


def test_a_verb_that_does_not_go_with_the_input_lists_those_that_do(ckpt, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors")
    for verb, more in (("reshard", ["--world-size", 2]), ("universal", []), ("convert-optimizer", ["--to", "AdamW"])):
        status, _, err = ckpt(verb, tmp_path / "m.safetensors", "-o", tmp_path / "out", *more)
        assert status == 2 and f"inspect, verify, diff, export; not with {verb}" in err
