"""What a checkpoint says of how a step was computed."""

import warnings
from types import SimpleNamespace

import pytest

from zeromuon.optimizer import state
from zeromuon.optimizer.options import validate_options

PLAN = SimpleNamespace(arithmetic_hash="0123456789abcdef")


def warned(saved: dict, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state._warn_of_arithmetic(saved, PLAN, validate_options(options))
    return [str(w.message) for w in caught]


def test_the_same_arithmetic_is_no_matter():
    assert warned({"arithmetic": PLAN.arithmetic_hash}) == []
    assert warned({"arithmetic": PLAN.arithmetic_hash}, cpu_kernels="generic") == [], "the same bits as auto"


@pytest.mark.parametrize("saved", [{"arithmetic": "fedcba9876543210"}, {}], ids=["another", "not recorded"])
def test_another_or_an_unknown_arithmetic_is_warned_of(saved):
    (message,) = warned(saved)
    assert saved.get("arithmetic", "not recorded") in message and PLAN.arithmetic_hash in message


def test_kernels_that_give_other_bits_count_on_either_side():
    assert len(warned({"arithmetic": PLAN.arithmetic_hash}, cpu_kernels="onednn")) == 1
    assert len(warned({"arithmetic": PLAN.arithmetic_hash + ", cpu_kernels onednn"})) == 1
    assert warned({"arithmetic": PLAN.arithmetic_hash + ", cpu_kernels onednn"}, cpu_kernels="onednn") == []
