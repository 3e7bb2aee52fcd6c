"""bf16 and fp16 training against the reference that is fed the captured gradients: docs/numerics.md."""

import pytest

from tests.multirank.cases import STEPS
from tests.multirank.configurations import SIXTEEN_BITS
from tests.multirank.launch import row

PARAMETERS = [
    pytest.param(
        world_size,
        row(case.name, "captured", **case.as_dict()),
        id=f"{world_size} ranks: {case.name}",
        marks=[pytest.mark.full] if case.only_in_full(world_size) else [],
    )
    for world_size in (1, 2, 3)
    for case in SIXTEEN_BITS
]


@pytest.mark.parametrize("world_size, row", PARAMETERS)
def test_master_weights_match_the_reference_fed_with_the_reduced_gradients(world_size, row, result):
    assert result["moved"] >= 0.05
    assert result["taken"] >= STEPS
    assert result["momentum_error"] <= 1e-6, "relative to the largest of the same momentum"
    assert result["norm_error"] <= 1e-6, "the norm that the engine reports is that of the raw gradients"
    assert result["cast_is_exact"] == [True] * world_size, "16-bit weights are the cast of the master weights"
    if row["arguments"]["options"].get("wire_dtype") == "float32":
        assert result["error"] <= result["bar"]
    else:
        assert 2e-6 < result["update_error"] <= 1e-2, "a bf16 wire rounds the update, and no more"


@pytest.mark.parametrize("world_size, row", [p for p in PARAMETERS if "scale" in p.id and "growing" in p.id])
def test_a_growing_loss_scale_changes_within_the_run(world_size, row, result):
    assert len(result["scales"]) >= 2


@pytest.mark.parametrize("world_size, row", [p for p in PARAMETERS if "skipped" in p.id])
def test_an_overflow_is_skipped_within_the_run(world_size, row, result):
    assert result["skipped"] >= 1
