"""To another world size through DeepSpeed's own ds_to_universal."""

import functools

import pytest

from tests.multirank.launch import row, run_rows

BF16 = "ZeroMuon, bf16 momentum"


def good(results: dict) -> dict:
    for result in results.values():
        assert "failed" not in result, result["failed"]
    return results


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with checkpoints that were saved on 2 ranks and converted, by name."""
    folders = {name: str(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name in ("ZeroMuon", BF16, "AdamW")}

    def saving(name: str) -> dict:
        options = {"momentum_dtype": "bfloat16"} if name == BF16 else {}
        optimizer = name.partition(",")[0]
        return row(name, "save_for_universal", folder=folders[name], optimizer=optimizer, options=options)

    results = good(run_rows(2, [saving(name) for name in folders]))
    return {name: (folders[name], results[name]) for name in folders}


@pytest.fixture(scope="module")
def loaded(saved):
    """loaded(world size): the results of the rows that load on so many ranks, of one launch each."""
    ours, bf16, adamw = (saved[name][0] for name in ("ZeroMuon", BF16, "AdamW"))
    both = [
        row("with", "load_universal", folder=ours, zero_init=True, options={}),
        row("without", "load_universal", folder=ours, zero_init=False, options={}),
    ]
    more = {
        2: row("foreign", "load_foreign_universal", folder=adamw),
        3: row("bf16", "load_universal", folder=bf16, zero_init=False, options={"momentum_dtype": "bfloat16"}),
    }
    return functools.cache(lambda w: good(run_rows(w, both + [one for at, one in more.items() if at == w])))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_goes_on_at_another_world_size(world_size, saved, loaded):
    _, before = saved["ZeroMuon"]
    for result in (loaded(world_size)[name] for name in ("with", "without")):
        assert result["error"] <= 2e-6
        assert result["groups"] == before["groups"] == [[0.02, 0.3], [0.002, 0.3], [0.02, 0.1], [0.002, 0.1]]
        assert result["states"] == [["exp_avg", "exp_avg_sq", "step"], ["exp_avg", "step"]], "Muon keeps one state"
        assert result["left_over"] == []


def test_a_bf16_momentum_is_one_after_a_universal_load(loaded):
    result = loaded(3)["bf16"]
    assert result["momentum_dtypes"] == ["torch.bfloat16"]
    # Sums over three ranks differ in the last place, and a momentum may be rounded to the neighbouring bf16.
    assert result["error"] <= 1e-3
    assert result["states"] == [["exp_avg", "exp_avg_sq", "step"], ["exp_avg", "step"]]


def test_a_universal_checkpoint_of_adamw_is_refused_before_the_first_step(loaded):
    result = loaded(2)["foreign"]
    assert all("converted from AdamW to Muon" in error for error in result["errors"])
    assert result["unchanged"] == [True, True]
