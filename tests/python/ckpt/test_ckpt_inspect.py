"""inspect on what DeepSpeed wrote, and what each kind of checkpoint goes with."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.kinds import KINDS, MORE_KINDS, SAVED_AFTER
from tests.multirank.launch import environment

NAMES_OF_OPTIMIZERS = {"AdamW": "AdamW", "ZeroMuon": "ZeroMuon", "Muon": "Muon (DeepSpeed)"}
NAMES_OF_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
EVERY = [(world_size, name) for world_size in (1, 2, 3) for name in KINDS] + [(2, name) for name in MORE_KINDS]
every = pytest.mark.parametrize("world_size, name", EVERY)


@every
def test_the_facts_are_those_of_the_run(world_size, name, saved):
    checkpoint, kind = saved(world_size, name), {**KINDS, **MORE_KINDS}[name]
    found = tool.inspect(checkpoint.run)
    assert found["kind"] == "ZeRO-3"
    assert (found["tag"], found["world_size"], found["sub_groups"]) == (
        "saved",
        world_size,
        checkpoint.row["sub_groups"],
    )
    assert found["optimizer"] == NAMES_OF_OPTIMIZERS[kind.optimizer]
    assert found["momentum_kind"] == ("" if kind.optimizer == "AdamW" else kind.options.get("momentum_kind", "ema"))
    facts = found["facts"]
    assert facts["dtype"] == NAMES_OF_TYPES[kind.dtype]
    assert facts["global_steps"] == str(SAVED_AFTER)
    assert facts["ds_version"] == checkpoint.row["deepspeed"]
    assert facts["sub_group_size"] == str(kind.sub_group)
    assert len(found["files"]) == 2 * world_size
    assert found["warnings"] == []


@every
def test_every_tensor_has_its_shape_role_type_and_states(world_size, name, saved):
    checkpoint, kind = saved(world_size, name), {**KINDS, **MORE_KINDS}[name]
    live = checkpoint.tensors("live.pt")
    found = {t["name"]: t for t in tool.inspect(checkpoint.run)["tensors"]}
    assert sorted(found) == sorted([*live["weights"], *live["kept"]])
    for tensor_name, weights in live["weights"].items():
        tensor = found[tensor_name]
        assert tensor["shape"] == tuple(weights.shape)
        assert (tensor["dtype"], tensor["bytes"]) == ("float32", 4 * weights.numel())
        assert tensor["role"] == _role(kind, tensor_name)
        assert sorted(tensor["states"]) == sorted(live["states"][tensor_name])
    for tensor_name, kept in live["kept"].items():
        tensor = found[tensor_name]
        assert tensor["role"] == ("frozen" if tensor_name in zoo.FROZEN else "buffer")
        assert tensor["dtype"] == str(kept.dtype).removeprefix("torch.")
        assert tensor["shape"] == tuple(kept.shape)


def _role(kind, name: str) -> str:
    """DeepSpeed's own Muon goes by the name: "embed" keeps its AdamW, all other matrices are Muon's."""
    return "muon" if name in zoo.MUON and kind.optimizer != "AdamW" else "adamw"


@every
def test_tied_names_are_aliases(world_size, name, saved):
    assert tool.inspect(saved(world_size, name).run)["aliases"] == zoo.ALIASES


def test_a_tag_and_the_folder_of_a_tag_name_the_same_checkpoint(saved):
    run = saved(2, "AdamW-fp32").run
    by_latest, by_tag, by_folder = tool.inspect(run), tool.inspect(run, "saved"), tool.inspect(f"{run}/saved")
    assert by_latest["files"] == by_tag["files"]
    assert [t["name"] for t in by_folder["tensors"]] == [t["name"] for t in by_latest["tensors"]]
    with pytest.raises(tool.FormatError, match="the folder of the tag"):
        tool.inspect(run, "other")


def test_a_universal_folder_tells_what_it_was_made_of(output, saved):
    folder, _ = output("ZeroMuon-fp32 universal")
    found = tool.inspect(str(folder))
    assert (found["kind"], found["optimizer"], found["world_size"]) == ("universal", "ZeroMuon", 0)
    assert found["facts"]["saved_on_ranks"] == "2"
    peer = tool.inspect(str(saved(2, "ZeroMuon-fp32").folder / "peer-universal"))
    assert [t["name"] for t in peer["tensors"]] == [t["name"] for t in found["tensors"]]
    assert peer["optimizer"] == "ZeroMuon"


def test_models_without_optimizer_are_told_apart(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.save({**tensors, "tied": tensors["a"]}, tmp_path / "model.pt")
    found = tool.inspect(str(tmp_path / "model.safetensors"))
    assert found["kind"] == "safetensors"
    assert {t["name"]: (t["dtype"], t["shape"]) for t in found["tensors"]} == {
        "a": ("float32", (2, 3)),
        "b": ("bfloat16", (4,)),
    }
    found = tool.inspect(str(tmp_path / "model.pt"))
    assert (found["kind"], found["aliases"]) == ("torch", {"tied": "a"})


def test_inspecting_imports_neither_torch_nor_deepspeed(saved):
    code = (
        "import json, sys; from zeromuon import _ckpt; kind = _ckpt.inspect(sys.argv[1])['kind'];"
        "print(json.dumps([kind, [m for m in ('torch', 'deepspeed', 'numpy') if m in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, saved(2, "AdamW-fp32").run],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == ["ZeRO-3", []]


# ---- every pair of a verb and a kind of input ------------------------------------------------------

ALL = ["inspect", "verify", "diff", "export"]
VERBS = {
    "zero3": [*ALL, "reshard", "universal", "convert-optimizer"],
    "universal": [*ALL, "reshard", "convert-optimizer"],
    "safetensors": ALL,
    "torch": ALL,
}


@pytest.fixture
def inputs(output, saved, tmp_path):
    """A checkpoint of each kind."""
    run = saved(2, "ZeroMuon-fp32").run
    tool.export(run, str(tmp_path / "safe"))
    tool.export(run, str(tmp_path / "torch"), format="torch")
    return {
        "zero3": run,
        "universal": str(output("ZeroMuon-fp32 universal")[0] / "universal"),
        "safetensors": str(tmp_path / "safe"),
        "torch": str(tmp_path / "torch"),
    }


CALLS = {
    "inspect": lambda path, out: tool.inspect(path),
    "verify": lambda path, out: tool.verify(path),
    "diff": lambda path, out: tool.diff(path, path),
    "export": lambda path, out: tool.export(path, out),
    "reshard": lambda path, out: tool.reshard(path, out, 3),
    "universal": lambda path, out: tool.universal(path, out),
    "convert-optimizer": lambda path, out: tool.convert_optimizer(path, out, "AdamW"),
}


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("kind", VERBS)
def test_a_pair_outside_the_table_is_an_error_that_lists_what_is_possible(kind, verb, inputs, tmp_path):
    path, out = inputs[kind], str(tmp_path / "out")
    assert tool.inspect(path)["verbs"] == VERBS[kind]
    if verb in VERBS[kind]:
        assert CALLS[verb](path, out)
        return
    with pytest.raises(ValueError, match=f"goes with {', '.join(VERBS[kind])}; not with {verb}"):
        CALLS[verb](path, out)
    assert not (tmp_path / "out").exists()


def test_safetensors_are_not_exported_to_torch(inputs, tmp_path):
    with pytest.raises(ValueError, match="a safetensors model is exported to safetensors"):
        tool.export(inputs["safetensors"], str(tmp_path / "out"), format="torch")


# ---- states on NVMe ----------------------------------------------------------------------------------


def test_states_that_deepspeed_left_on_nvme_are_an_error_that_names_their_folders(saved):
    checkpoint = saved(2, "nvme")
    if "missing" in checkpoint.row:
        pytest.skip(checkpoint.row["missing"])
    with pytest.raises(tool.FormatError, match="offloaded to NVMe.*offloaded_tensors"):
        tool.inspect(checkpoint.run)


def test_empty_flat_groups_of_the_documented_nvme_layout_name_the_folders_of_the_data(saved):
    """Not written so by DeepSpeed: its files with the flat groups emptied, as it leaves them with an optimizer on NVMe."""
    folder = saved(2, "changed").folder / "nvme"
    for rank in range(2):
        (folder / f"offloaded_tensors/rank{rank:02d}").mkdir(parents=True, exist_ok=True)
    with pytest.raises(tool.FormatError, match="offloaded to NVMe.*rank00") as caught:
        tool.inspect(str(folder))
    assert "rank01" in caught.value.remedy
