"""A step allocates no tensor storage and no buffer of 4 KiB or more."""

import pytest

from tests.multirank.launch import row


@pytest.mark.parametrize(
    "world_size, row",
    [
        pytest.param(
            w,
            row(f"allocations, offload {o}, fused {f}", "allocations", offload=o, fused_step=f),
            id=f"{w} ranks, offload {o}, fused {f}",
        )
        for w, o in ((1, False), (2, False), (2, True), (3, True))
        for f in ("on", "off")
    ],
)
def test_after_the_first_step_nothing_large_is_allocated(world_size, row, result):
    assert result["warm"]["tensor_storage"] > 0 and result["warm"]["large_buffers"] > 0, "the counters count"
    assert result["calls"] == (3 if row["arguments"]["fused_step"] == "on" else 6)
    assert all(c == {"tensor_storage": 0, "large_buffers": 0} for c in result["counted"]), result["counted"]
