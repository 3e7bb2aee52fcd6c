"""export against the live model and DeepSpeed's zero_to_fp32, bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.tensors import assert_same, whole_model, with_aliases
from tests.python.ckpt.test_ckpt_inspect import every

BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def exported(run: str, folder, **options) -> dict[str, torch.Tensor]:
    tool.export(run, str(folder), **options)
    return load_file(folder / "model.safetensors")


@every
def test_the_master_weights_are_the_live_ones(world_size, name, saved, tmp_path):
    checkpoint = saved(world_size, name)
    assert_same(exported(checkpoint.run, tmp_path), whole_model(checkpoint.tensors("live.pt")))


@every
def test_values_are_those_of_zero_to_fp32(world_size, name, saved, tmp_path):
    """It makes buffers fp32 and leaves frozen parameters as they are."""
    checkpoint = saved(world_size, name)
    found = with_aliases(exported(checkpoint.run, tmp_path))
    as_there = {n: t.float() if n in zoo.BUFFERS and t.is_floating_point() else t for n, t in found.items()}
    assert_same(as_there, checkpoint.tensors("zero_to_fp32.pt"))


@pytest.mark.parametrize("dtype", BY_NAME)
@pytest.mark.parametrize("name", ["AdamW-fp32", "ZeroMuon-bf16", "AdamW-fp16"])
def test_one_dtype_for_what_is_trained_rounds_as_torch_does(name, dtype, saved, tmp_path):
    """Frozen parameters and buffers keep their own."""
    checkpoint = saved(2, name)
    assert_same(
        exported(checkpoint.run, tmp_path, dtype=dtype), whole_model(checkpoint.tensors("live.pt"), BY_NAME[dtype])
    )


def test_in_its_own_dtype_an_export_is_the_live_low_precision_model(saved, tmp_path):
    checkpoint = saved(3, "ZeroMuon-bf16")
    live = checkpoint.tensors("live.pt")
    assert_same(exported(checkpoint.run, tmp_path, dtype="bfloat16"), {**live["low"], **live["kept"]})


def test_the_first_pattern_that_fits_says_the_dtype_of_frozen_ones_and_buffers_too(saved, tmp_path):
    checkpoint = saved(2, "AdamW-fp32")
    patterns = [("norm.*", "float32"), ("*.bias", "bfloat16"), ("running", "float16")]
    found = exported(checkpoint.run, tmp_path, dtype="float16", dtype_patterns=patterns)
    types = {name: tensor.dtype for name, tensor in found.items()}
    assert types["norm.bias"] == torch.float32
    assert types["first.bias"] == types["fixed.bias"] == torch.bfloat16
    assert types["first.weight"] == types["running"] == torch.float16
    assert (types["fixed.weight"], types["steps"], types["mask"]) == (torch.float32, torch.int64, torch.bool)
    expected = whole_model(checkpoint.tensors("live.pt"))
    assert_same(found, {name: expected[name].to(dtype) for name, dtype in types.items()})


def test_integers_are_not_made_floating(saved, tmp_path):
    with pytest.raises(ValueError, match='"steps": int64 is not converted to float16'):
        exported(saved(2, "AdamW-fp32").run, tmp_path, dtype_patterns=[("step*", "float16")])
    assert not (tmp_path / "model.safetensors").exists()


def test_include_and_exclude_choose_by_name(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    found = exported(run, tmp_path, include=["first.*", "norm.*", "running"], exclude=["*.bias"])
    assert sorted(found) == ["first.weight", "norm.weight", "running"]
    with pytest.raises(ValueError, match='--include: expected a pattern that matches a tensor, got "nothing'):
        tool.export(run, str(tmp_path / "none"), include=["nothing.*"])


def test_a_tied_weight_is_written_once_with_its_alias_recorded(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    report = tool.export(run, str(tmp_path))
    assert report["aliases"] == zoo.ALIASES
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "zeromuon.alias.lm_head.weight": "embed.weight"}
        assert "embed.weight" in file.keys() and "lm_head.weight" not in file.keys()
    assert tool.inspect(str(tmp_path))["aliases"] == zoo.ALIASES


def test_the_alias_takes_over_where_the_stored_name_is_excluded(saved, tmp_path):
    checkpoint = saved(2, "AdamW-fp32")
    found = exported(checkpoint.run, tmp_path, include=["embed.*", "lm_head.*"], exclude=["embed.*"])
    assert_same(found, {"lm_head.weight": checkpoint.tensors("live.pt")["weights"]["embed.weight"]})


@pytest.mark.parametrize("limit", [200, 600, 1000])
def test_shards_are_read_through_their_index(limit, saved, tmp_path):
    checkpoint = saved(3, "ZeroMuon-fp32")
    tool.export(checkpoint.run, str(tmp_path), max_shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("model-0*.safetensors"))
    assert [p.name for p in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    assert len(shards) > 1
    found = {}
    for shard in shards:
        tensors = load_file(shard)
        sizes = [t.nbytes for t in tensors.values()]
        assert sum(sizes) <= limit or len(sizes) == 1
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        found.update(tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert sorted(index["weight_map"]) == sorted(found)
    expected = whole_model(checkpoint.tensors("live.pt"))
    assert_same(found, expected)
    again = tmp_path / "again"
    tool.export(str(tmp_path), str(again), max_shard_bytes=0)
    assert_same(load_file(again / "model.safetensors"), expected)


@pytest.mark.parametrize("name", ["AdamW-fp32", "Muon-bf16"])
def test_a_torch_file_is_loaded_with_weights_only_and_its_tied_names_share_memory(name, saved, tmp_path):
    checkpoint = saved(2, name)
    tool.export(checkpoint.run, str(tmp_path), format="torch")
    found = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert_same(dict(found), with_aliases(whole_model(checkpoint.tensors("live.pt"))))
    assert found["lm_head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    model = zoo.build().bfloat16() if name.endswith("bf16") else zoo.build()
    model.load_state_dict(found)


def test_a_torch_state_dict_is_exported_to_safetensors_and_back(saved, tmp_path):
    checkpoint = saved(2, "AdamW-fp32")
    tool.export(checkpoint.run, str(tmp_path / "model.pt"), format="torch")
    found = exported(str(tmp_path / "model.pt"), tmp_path / "safe")
    expected = whole_model(checkpoint.tensors("live.pt"))
    assert_same(found, expected)
    found = exported(str(tmp_path / "safe"), tmp_path / "half", dtype="float16")
    assert_same(found, {n: t.half() if t.is_floating_point() else t for n, t in expected.items()})


@pytest.mark.parametrize("name", ["AdamW-fp32", "AdamW-bf16", "ZeroMuon-fp32"])
def test_a_universal_checkpoint_is_exported_as_what_it_was_made_of(name, output, saved, tmp_path):
    folder, _ = output(f"{name} universal")
    expected = whole_model(saved(2, name).tensors("live.pt"))
    assert_same(exported(str(folder / "universal"), tmp_path / "ours"), expected)
    peer = saved(2, name).folder / "peer-universal"
    assert_same(exported(str(peer), tmp_path / "peer"), expected)


def test_an_existing_output_is_kept_without_force(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(tool.FormatError, match="one that exists"):
        tool.export(run, str(tmp_path))
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    tool.export(run, str(tmp_path), force=True)
    assert len(load_file(tmp_path / "model.safetensors")) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
