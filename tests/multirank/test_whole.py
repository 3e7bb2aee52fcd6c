"""Checkpoints in which a parameter held other matrices: those of a version for which every one was one, and stacks AdamW's."""

import shutil

import pytest
from zeromuon import ckpt

from tests.multirank.launch import run_rows, row
from tests.python.ckpt.fixtures.make_whole import FOLDER

BETA1, STEPS = 0.9, 3  # of the fixtures


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Of all rows, in one launch."""
    converted = tmp_path_factory.mktemp("converted") / "experts"
    tensors = ckpt.inspect(FOLDER / "experts")["tensors"]
    roles = {t["name"]: "muon" if "experts" in t["name"] else t["role"] for t in tensors}
    ckpt.convert_optimizer(FOLDER / "experts", converted, "ZeroMuon", roles=roles)
    shutil.copy(FOLDER / "experts" / "next.pt", converted / "next.pt")
    rows = [
        row("refused", "load_with_next", model="experts", folder=str(FOLDER / "experts")),
        row("excluded", "load_with_next", model="experts", folder=str(FOLDER / "experts"), exclude=["*experts*"]),
        row("converted", "load_with_next", model="experts", folder=str(converted)),
        row("other matrices", "load_with_next", model="fused", folder=str(FOLDER / "fused")),
        row("as it was", "load_with_next", model="fused", folder=str(FOLDER / "fused"), split_fused=False),
    ]
    return run_rows(2, rows)


def result_of(results: dict, name: str) -> dict:
    assert "failed" not in results[name], results[name]["failed"]
    return results[name]


def test_stacks_that_were_adamws_are_refused_with_both_remedies(results):
    for error in result_of(results, "refused")["errors"]:
        assert error.startswith("ValueError") and "mlp.experts.down_proj" in error and "1 more" in error
        assert "exclude=" in error and "convert-optimizer --to ZeroMuon" in error


def test_with_exclude_the_run_goes_on_as_it_did(results):
    found = result_of(results, "excluded")
    assert found["errors"] == ["", ""] and found["distance"] <= 2e-6
    assert found["warnings"] == []


def test_a_converted_stack_has_its_first_moments_as_momenta(results):
    found = result_of(results, "converted")
    assert found["errors"] == ["", ""] and found["warnings"] == []
    grown = 1 / (1 - BETA1**STEPS)
    for name, ratios in found["ratios"].items():
        assert ratios == pytest.approx([grown, grown] if "experts" in name else [1, 1], rel=1e-6), name


def test_other_matrices_are_taken_with_a_warning_that_names_them(results):
    found = result_of(results, "other matrices")
    assert found["errors"] == ["", ""]
    (warning,) = found["warnings"]
    assert "qkv_proj.weight" in warning and "gate_up_proj.weight" in warning and "split_fused=False" in warning
    assert found["distance"] > 1e-3, "the next update is of other matrices"


def test_with_split_fused_off_the_run_goes_on_as_it_did(results):
    found = result_of(results, "as it was")
    assert (found["errors"], found["warnings"]) == (["", ""], [])
    assert found["distance"] <= 2e-6
