"""verify on what DeepSpeed wrote, and on copies of it that were damaged."""

import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tests.python.ckpt import tool
from tests.python.ckpt.test_ckpt_inspect import every

NORM_BIAS = "norm.bias"
OPTIM_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL_0 = "zero_pp_rank_0_mp_rank_00_model_states.pt"


@every
def test_what_deepspeed_wrote_is_well_and_has_the_norms_of_the_live_model(world_size, name, saved):
    checkpoint = saved(world_size, name)
    report = tool.verify(checkpoint.run)
    assert report["ok"] and report["problems"] == []
    live = checkpoint.tensors("live.pt")
    norms = {(t["name"], t["part"]): t["norm"] for t in report["tensors"]}
    for parameter, weights in live["weights"].items():
        assert norms[parameter, "value"] == pytest.approx(weights.double().norm().item(), rel=1e-12)
        for part, state in live["states"][parameter].items():
            assert norms[parameter, part] == pytest.approx(state.double().norm().item(), rel=1e-12, abs=1e-300)
    assert len(norms) == len(report["tensors"])


@pytest.mark.parametrize(
    "name",
    [
        "AdamW-fp32 universal",
        "ZeroMuon-fp32 universal",
        "Muon-fp32 on 3",
        "AdamW-fp16 on 3",
        "ZeroMuon-fp32 to AdamW",
        "AdamW-bf16 to ZeroMuon",
        "Muon-bf16 to ZeroMuon",
    ],
)
def test_what_the_tool_wrote_is_well(name, output):
    folder, _ = output(name)
    report = tool.verify(str(folder))
    assert report["ok"], report["problems"]


def test_a_universal_folder_of_deepspeed_is_well(saved):
    assert tool.verify(str(saved(2, "AdamW-bf16").folder / "peer-universal"))["ok"]


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of a checkpoint of two ranks, to be damaged."""
    return shutil.copytree(saved(2, "AdamW-fp32").folder / "run", tmp_path / "run")


def problems(path, **options) -> list[dict]:
    report = tool.verify(str(path), **options)
    assert report["ok"] == (not report["problems"])
    return report["problems"]


@pytest.mark.parametrize(
    "file", [OPTIM_1, "zero_pp_rank_0_mp_rank_00_optim_states.pt", MODEL_0, "zero_pp_rank_1_mp_rank_00_model_states.pt"]
)
def test_a_missing_file_of_a_rank_is_named(file, copy):
    (copy / "saved" / file).unlink()
    [problem] = problems(copy)
    kind = "optim" if "optim" in file else "model"
    said = problem["text"]
    assert f"a {kind} file of rank 0" in said or ("the files of 2 ranks" in said and f"1 {kind}" in said)
    assert "restore it" in problem["remedy"]


def test_a_rank_of_another_world_size_is_named(copy, saved):
    shutil.copy(saved(3, "AdamW-fp32").folder / "run/saved" / OPTIM_1, copy / "saved" / OPTIM_1)
    [problem] = problems(copy)
    assert OPTIM_1 in problem["file"]
    assert "mixed" in problem["remedy"]


@pytest.mark.parametrize(
    "file, other",
    [(OPTIM_1, "ZeroMuon-fp32"), (OPTIM_1, "AdamW-bf16"), ("zero_pp_rank_1_mp_rank_00_model_states.pt", "Muon-fp32")],
)
def test_a_rank_of_another_run_is_named(file, other, copy, saved):
    prefix = "bf16_" if other.endswith("bf16") and "optim" in file else ""
    (copy / "saved" / file).unlink()
    shutil.copy(saved(2, other).folder / "run/saved" / f"{prefix}{file}", copy / "saved" / f"{prefix}{file}")
    [problem] = problems(copy)
    assert "mixed" in problem["remedy"] or "do not belong" in problem["remedy"]


def test_a_rank_of_an_earlier_save_of_the_same_run_is_named(saved):
    """Mixed tags: the shapes agree, the counters do not."""
    [problem] = problems(saved(2, "changed").folder / "earlier-save")
    assert "global_steps 3, as on rank 0" in problem["expected"]
    assert problem["file"].endswith("zero_pp_rank_1_mp_rank_00_model_states.pt")
    assert problem["got"] == "2" and "mixed" in problem["remedy"]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("file", [OPTIM_1, MODEL_0])
def test_a_truncated_file_is_named(file, kept, copy):
    path = copy / "saved" / file
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    [problem] = problems(copy)
    assert file in problem["file"]
    assert problem["remedy"]


@pytest.mark.parametrize("file", [OPTIM_1, MODEL_0])
def test_a_flipped_byte_of_a_tensor_breaks_the_crc_of_its_record(file, copy):
    path = copy / "saved" / file
    record, offset = _largest_record(path)
    data = bytearray(path.read_bytes())
    data[offset + 1] ^= 0x10
    path.write_bytes(data)
    found = problems(copy)
    assert [p["file"] for p in found] == [f"{path}: {record}"]
    assert found[0]["offset"] == offset
    assert "CRC" in found[0]["expected"]
    assert problems(copy, check_crc=False) == []


def _largest_record(path) -> tuple[str, int]:
    """Name of the largest record with data of a tensor, and where it begins in the file."""
    with zipfile.ZipFile(path) as file:
        info = max((i for i in file.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        with file.open(info) as record:
            record.read(1)
            return info.filename, _data_offset(path, info.header_offset)


def _data_offset(path, header: int) -> int:
    data = path.read_bytes()
    name, extra = (int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
    return header + 30 + name + extra


def test_a_nan_in_a_tensor_is_a_problem(saved):
    folder = saved(2, "changed").folder / "nan-in-tensor"
    report = tool.verify(str(folder))
    assert not report["ok"]
    assert sorted(p["expected"] for p in report["problems"]) == [
        f'finite values in "{NORM_BIAS}" ({part})' for part in ("exp_avg", "value")
    ]
    bad = [(t["name"], t["part"], t["nan"]) for t in report["tensors"] if t["nan"] or t["infinite"]]
    assert sorted(bad) == [(NORM_BIAS, "exp_avg", 1), (NORM_BIAS, "value", 1)]


def test_a_nan_in_padding_is_none(saved, output):
    folder = saved(2, "changed").folder / "nan-in-padding"
    assert problems(folder) == []
    assert tool.diff(str(folder), saved(2, "AdamW-fp32").run)["same"]


def test_padding_is_not_copied(saved, tmp_path):
    """7 elements on two ranks are 4 and 3; on seven there is no padding for a NaN to hide in."""
    tool.reshard(str(saved(2, "changed").folder / "nan-in-padding"), str(tmp_path), 7)
    assert problems(tmp_path) == []
    assert tool.diff(str(tmp_path), saved(2, "AdamW-fp32").run)["same"]


def test_values_of_models_without_optimizer_are_looked_at(tmp_path):
    spoiled = torch.ones(5)
    spoiled[1], spoiled[2], spoiled[3] = float("nan"), float("inf"), float("-inf")
    save_file({"good": torch.ones(4), "bad": spoiled}, tmp_path / "model.safetensors")
    torch.save({"good": torch.ones(4), "bad": spoiled.bfloat16()}, tmp_path / "model.pt")
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pt"):
        found = {t["name"]: t for t in tool.verify(str(path))["tensors"]}
        assert (found["bad"]["nan"], found["bad"]["infinite"]) == (1, 2)
        assert found["bad"]["norm"] == pytest.approx(2**0.5)
        assert (found["good"]["nan"], found["good"]["norm"]) == (0, 2.0)


def test_a_tag_that_latest_names_but_is_not_there_is_a_problem(copy):
    (copy / "latest").write_text("gone")
    [problem] = problems(copy)
    assert "gone" in problem["text"] and "--tag" in problem["remedy"]
