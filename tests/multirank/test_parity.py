"""Muon under real ZeRO-3, in fp32, against the one-process reference: docs/numerics.md."""

import pytest
import torch  # noqa: F401  (the core needs it loaded)
from zeromuon import _lab

from tests.multirank.cases import STEPS
from tests.multirank.configurations import BLOCKS, FIVE_RANKS, FULL, PARITY, USERS
from tests.multirank.launch import row

NO_ONEDNN = dict(_lab.cpu_kernels())["onednn"]  # why not; empty: it is there


def parameters():
    for world_size in (1, 2, 3):
        for case in (*PARITY, *USERS, *BLOCKS, *FULL):
            in_full = case in FULL or case.only_in_full(world_size)
            marks = [pytest.mark.full] if in_full else []
            if case.options.get("cpu_kernels") == "onednn" and NO_ONEDNN:
                marks.append(pytest.mark.skip(reason=f"cpu_kernels onednn: {NO_ONEDNN}"))
            yield pytest.param(
                world_size,
                row(case.name, "parity", **case.as_dict()),
                marks=marks,
                id=f"{world_size} ranks: {case.name}",
            )
    for case in FIVE_RANKS:
        yield pytest.param(5, row(case.name, "parity", **case.as_dict()), id=f"5 ranks: {case.name}")


def check_parity(result):
    """The bars of docs/numerics.md, for one row."""
    assert result["moved"] >= 0.05
    assert result["error"] <= result["bar"] <= 1e-4
    assert result["momentum_error"] <= result["momentum_bar"] <= 1e-2, "relative to the largest of the same momentum"
    assert result["norms"] == pytest.approx(result["reference_norms"], rel=1e-5), "the norms of the raw gradients"
    assert result["clip"] == 0 or min(result["reference_norms"]) > result["clip"], "clipping is active"
    assert result["steps"] == STEPS
    assert result["newton_schulz"] == STEPS * result["matrices"], "Newton-Schulz runs once per matrix and step"


@pytest.mark.parametrize("world_size, row", list(parameters()))
def test_five_steps_match_the_reference(world_size, row, result):
    check_parity(result)


@pytest.mark.parametrize(
    "world_size, row", [pytest.param(w, row("offload and not", "offload_and_not"), id=f"{w} ranks") for w in (1, 2, 3)]
)
def test_offload_changes_no_bit_of_weights_and_momenta(world_size, row, result):
    assert result["tensors"] > 20
    assert result["same"] == [True] * world_size


@pytest.mark.parametrize(
    "world_size, row",
    [pytest.param(w, row(PARITY[0].name, "parity", **PARITY[0].as_dict()), id=f"{w} ranks") for w in (1, 2, 3)],
)
def test_each_element_travels_once_there_and_once_back(world_size, row, result):
    # To other ranks: (W-1)/W of every matrix, twice, 4 bytes each, besides flag words, what aligns segments to 128
    # bytes, uneven chunks, and 512 bytes for every other rank at the end of a step, in which ranks tell what went wrong.
    closing = STEPS * world_size * (world_size - 1) * 512
    payload = 2 * 4 * result["muon_numel"] * (world_size - 1) / world_size * STEPS
    overhead = STEPS * 2 * world_size * world_size * 2 * 128 + 2 * STEPS * 4 * result["matrices"] * world_size
    assert payload - overhead <= sum(result["bytes_sent"]) - closing <= payload + overhead
