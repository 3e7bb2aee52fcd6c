"""Folders of torch.distributed.checkpoint: inspect and export."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from tests.python.ckpt import tool
from tests.python.ckpt.tensors import assert_same

TENSORS = {
    "layer.weight": torch.randn(7, 5, generator=torch.Generator().manual_seed(1)),
    "half": torch.ones(9).bfloat16(),
    "steps": torch.tensor(42),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dcp")
    dcp.save({"model": TENSORS, "epoch": 3, "note": "text"}, checkpoint_id=path, no_dist=True)
    return path


def test_a_folder_is_inspected(folder):
    found = tool.inspect(str(folder))
    assert (found["kind"], found["verbs"]) == ("DCP", ["inspect", "export"])
    tensors = {t["name"]: (t["dtype"], t["shape"]) for t in found["tensors"]}
    assert tensors == {
        f"model.{name}": (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in TENSORS.items()
    }


def test_a_folder_is_exported(folder, tmp_path):
    tool.export(str(folder), str(tmp_path))
    assert_same(load_file(tmp_path / "model.safetensors"), {f"model.{name}": t for name, t in TENSORS.items()})


@pytest.mark.parametrize(
    "call",
    [
        lambda path, out: tool.verify(path),
        lambda path, out: tool.diff(path, path),
        lambda path, out: tool.reshard(path, out, 2),
        lambda path, out: tool.universal(path, out),
        lambda path, out: tool.convert_optimizer(path, out, "AdamW"),
    ],
)
def test_other_verbs_are_refused(call, folder, tmp_path):
    with pytest.raises(ValueError, match="a DCP checkpoint goes with inspect, export; not with"):
        call(str(folder), str(tmp_path / "out"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_chunks_of_several_ranks_are_put_together(world_size, saved, tmp_path):
    """Sharded by rows and by columns, unevenly."""
    tool.export(str(saved(world_size, "dcp").folder), str(tmp_path))
    whole = torch.arange(70, dtype=torch.float32).reshape(7, 10)
    assert_same(load_file(tmp_path / "model.safetensors"), {name: whole for name in ("rows", "columns", "whole")})
