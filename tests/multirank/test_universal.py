"""To another world size through DeepSpeed's own ds_to_universal."""

import subprocess
import sys

import pytest

from tests.multirank.launch import environment, row, run_rows

BF16 = "ZeroMuon, bf16 momentum"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with checkpoints that were saved on 2 ranks and converted, by name."""
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in ("ZeroMuon", BF16, "AdamW")}
    results = run_rows(
        2,
        [
            row(
                name,
                "save_for_universal",
                folder=str(folder),
                optimizer=name.partition(",")[0],
                options={"momentum_dtype": "bfloat16"} if name == BF16 else {},
            )
            for name, folder in folders.items()
        ],
    )
    for name, folder in folders.items():
        assert "failed" not in results[name], results[name]["failed"]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "deepspeed.checkpoint.ds_to_universal",
                "--num_extract_workers",
                "1",
                "--num_merge_workers",
                "1",
                "--input_folder",
                str(folder / "saved"),
                "--output_folder",
                str(folder / "universal"),
            ],
            env={**environment(), "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: (str(folders[name]), results[name]) for name in folders}


def loaded(world_size, wanted):
    results = run_rows(world_size, wanted)
    for result in results.values():
        assert "failed" not in result, result["failed"]
    return results


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_goes_on_at_another_world_size(world_size, saved):
    folder, before = saved["ZeroMuon"]
    wanted = [
        row("with", "load_universal", folder=folder, zero_init=True, options={}),
        row("without", "load_universal", folder=folder, zero_init=False, options={}),
    ]
    for result in loaded(world_size, wanted).values():
        assert result["error"] <= 2e-6
        assert result["groups"] == before["groups"] == [[0.02, 0.3], [0.02, 0.3], [0.02, 0.1], [0.02, 0.1]]
        assert result["states"] == [["exp_avg", "exp_avg_sq", "step"], ["exp_avg", "step"]], "Muon keeps one state"
        assert result["left_over"] == []


def test_a_bf16_momentum_is_one_after_a_universal_load(saved):
    folder, _ = saved[BF16]
    result = loaded(
        3, [row("bf16", "load_universal", folder=folder, zero_init=False, options={"momentum_dtype": "bfloat16"})]
    )["bf16"]
    assert result["momentum_dtypes"] == ["torch.bfloat16"]
    # Sums over three ranks differ in the last place, and a momentum may be rounded to the neighbouring bf16.
    assert result["error"] <= 1e-3
    assert result["states"] == [["exp_avg", "exp_avg_sq", "step"], ["exp_avg", "step"]]


def test_a_universal_checkpoint_of_adamw_is_refused_before_the_first_step(saved):
    folder, _ = saved["AdamW"]
    result = loaded(2, [row("foreign", "load_foreign_universal", folder=folder)])["foreign"]
    assert all("converted from AdamW to Muon" in error for error in result["errors"])
    assert result["unchanged"] == [True, True]
