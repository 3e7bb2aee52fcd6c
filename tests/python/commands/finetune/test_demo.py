"""The demo learns more than word counts, and Muon is what makes it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import pytest

from zeromuon.commands.finetune import model_folder

BELOW_WORD_COUNTS = 0.6  # nats per token
BELOW_ADAMW_ALONE = 0.4


@pytest.fixture(scope="module")
def demo(command, tmp_path_factory):
    """Runs the demo with more options; returns its result.json."""
    if "ZEROMUON_DEMO_MODEL" not in os.environ and find_spec(model_folder.DEMO_PACKAGE) is None:
        pytest.skip(f"the demo's model is not installed ({model_folder.DEMO_PACKAGE}); ./run demo installs it")

    def run(*arguments):
        out = tmp_path_factory.mktemp("demo") / "run"
        status, output = command("--demo", "--out", out, *arguments).finish()
        assert status == 0, output
        return json.loads((out / "result.json").read_text()), output

    return run


@pytest.fixture(scope="module")
def with_muon(demo):
    return demo()


def test_the_demo_ends_below_the_word_count_model(with_muon):
    result, output = with_muon
    assert result["held_out_after"] <= result["baseline"] - BELOW_WORD_COUNTS
    assert result["held_out_before"] > result["baseline"]
    assert "loaded again: no missing keys, the same logits bit for bit" in output


def test_the_demos_optimizer_holds_less_than_adamw_would(with_muon):
    assert 0 < with_muon[0]["state_bytes"] < with_muon[0]["adamw_state_bytes"]


@pytest.mark.full
def test_the_demo_without_muons_share_ends_clearly_above(demo, with_muon):
    lr = 0.002
    config = ("--lr", "1e-12", "--set", f"optimizer.params.adam_lr={lr}")
    without, _ = demo(*config)
    assert with_muon[0]["held_out_after"] <= without["held_out_after"] - BELOW_ADAMW_ALONE
