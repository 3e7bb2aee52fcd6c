"""diff across formats, world sizes and data types."""

import pytest
import torch
from safetensors.torch import save_file

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.kinds import KINDS
from tests.python.ckpt.tensors import whole_model, with_aliases


@pytest.mark.parametrize("name", KINDS)
def test_runs_on_equal_gradients_are_the_same_on_any_number_of_ranks(name, saved):
    for world_size in (1, 3):
        report = tool.diff(saved(2, name).run, saved(world_size, name).run)
        assert report["same"], report
        assert report["compared"] == report["equal"]


@pytest.mark.parametrize("name", ["AdamW-fp32", "ZeroMuon-bf16", "Muon-fp32"])
def test_a_checkpoint_is_the_same_as_its_exports_and_its_universal_form(name, saved, tmp_path):
    run = saved(2, name).run
    tool.export(run, str(tmp_path / "safe"))
    tool.export(run, str(tmp_path / "model.pt"), format="torch")
    tool.universal(run, str(tmp_path / "universal"))
    others = [str(tmp_path / other) for other in ("safe", "model.pt", "universal")]
    for a, b in zip([run, *others], [*others, run]):
        report = tool.diff(a, b)
        assert report["same"], (a, b, report)
        assert report["compared"] >= len(with_aliases(whole_model(saved(2, name).tensors("live.pt"))))


def test_the_universal_folder_of_deepspeed_is_the_same(saved):
    for name in ("AdamW-fp32", "ZeroMuon-fp32", "AdamW-fp16"):
        checkpoint = saved(2, name)
        assert tool.diff(checkpoint.run, str(checkpoint.folder / "peer-universal"))["same"]


def test_a_rounded_export_differs_by_half_a_unit_in_the_last_place(saved, tmp_path):
    checkpoint = saved(2, "AdamW-fp32")
    tool.export(checkpoint.run, str(tmp_path), dtype="bfloat16")
    report = tool.diff(checkpoint.run, str(tmp_path))
    live = with_aliases(checkpoint.tensors("live.pt")["weights"])
    rounded = {n: t for n, t in live.items() if not torch.equal(t, t.bfloat16().float())}
    exact = live.keys() - rounded.keys()
    by_name = {d["name"]: d for d in report["differences"]}
    assert sorted(by_name) == sorted(live)
    assert all(by_name[name]["reason"] == "dtype" for name in exact)
    for name, tensor in rounded.items():
        found, error = by_name[name], (tensor - tensor.bfloat16().float()).abs()
        assert (found["reason"], found["in_a"], found["in_b"]) == ("values", "float32", "bfloat16")
        assert found["different"] == int((error > 0).sum())
        assert found["max_abs"] == pytest.approx(error.max().item())
        assert found["max_rel"] <= 2**-8


def test_another_optimizer_differs_in_its_states_only(output, saved):
    before, after = saved(2, "AdamW-fp32").run, str(output("AdamW-fp32 to ZeroMuon")[0])
    report = tool.diff(before, after)
    assert not report["same"]
    assert sorted(report["only_in_a"]) == sorted(f"{name}: exp_avg_sq" for name in zoo.MUON)
    assert sorted((d["name"], d["part"]) for d in report["differences"]) == sorted((n, "exp_avg") for n in zoo.MUON)
    assert tool.diff(before, after, states=False)["same"]


def test_names_shapes_and_counts_of_what_differs_are_told(tmp_path):
    a = {
        "same": torch.ones(3),
        "shape": torch.ones(2, 3),
        "values": torch.tensor([1.0, 2.0, float("nan")]),
        "a": torch.ones(1),
    }
    b = {
        "same": torch.ones(3),
        "shape": torch.ones(3, 2),
        "values": torch.tensor([1.0, 2.5, float("nan")]),
        "b": torch.ones(1),
    }
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    report = tool.diff(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert (report["only_in_a"], report["only_in_b"]) == (["a"], ["b"])
    assert (report["compared"], report["equal"], report["same"]) == (3, 1, False)
    found = {d["name"]: d for d in report["differences"]}
    assert (found["shape"]["reason"], found["shape"]["in_a"], found["shape"]["in_b"]) == ("shape", "(2, 3)", "(3, 2)")
    assert (found["values"]["different"], found["values"]["max_abs"], found["values"]["max_rel"]) == (1, 0.5, 0.2)


def test_a_step_changes_every_trained_tensor_and_nothing_else(resumed, saved, tmp_path):
    """The next step as a file of torch, against the checkpoint before it."""
    after = saved(2, "ZeroMuon-fp32").tensors("next.pt")
    torch.save(with_aliases(whole_model(after)), tmp_path / "next.pt")
    report = tool.diff(saved(2, "ZeroMuon-fp32").run, str(tmp_path / "next.pt"))
    assert sorted(d["name"] for d in report["differences"]) == sorted(with_aliases(after["weights"]))
