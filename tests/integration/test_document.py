"""docs/integration.md says what is so: its blocks are run, its files are there, its messages are those of the package."""

import re

import pytest
import torch

from tests.integration import doc_blocks
from tests.integration.test_hosts import HOSTS
from zeromuon import ZeroMuon
from zeromuon.deepspeed import muon_params, watch
from zeromuon.optimizer import state

TEXT = doc_blocks.DOCUMENT.read_text()
OTHERS = {"trainer_resume", "convert", "several_machines"}  # run in test_hosts.py, too, the last in test_two_hosts.py


def test_every_block_is_a_file_or_a_command_that_a_test_runs():
    blocks = doc_blocks.blocks()
    assert all(block.file or block.run for block in blocks)
    assert {block.run for block in blocks if block.run} == {*HOSTS, *OTHERS}


def test_every_file_of_the_document_is_used_by_a_command_or_by_another_file():
    blocks = doc_blocks.blocks()
    for file in (block.file for block in blocks if block.file):
        name = file.removesuffix(".py")
        users = [b for b in blocks if b.file != file and re.search(rf"\b{re.escape(name)}\b", b.text)]
        assert users, f"no block uses {file}"


def test_every_link_of_the_document_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT):
        assert (doc_blocks.DOCUMENT.parent / target).exists(), target


def test_every_key_of_deepspeeds_muon_stands_in_the_table_with_its_default():
    table = TEXT[TEXT.index("## In place of DeepSpeed's own") : TEXT.index("## Hugging Face Trainer")]
    for key in (*muon_params.KEYS, *muon_params.SELECTION_KEYS):
        assert f"`{key}`" in table, key
    options = muon_params.read_muon_params({}).options
    shown = {
        "lr": "| 0.02 |",
        "adam_lr": "| 3e-4 |",
        "momentum": "| 0.95 |",
        "weight_decay": "| 0.0 |",
        "eps": "1e-10 |",
    }
    assert {key: float(text.strip("| ")) for key, text in shown.items()} == {key: options[key] for key in shown}
    assert all(text in table for text in shown.values()) and "| (0.9, 0.95)," in table


def _error_of(build) -> str:
    with pytest.raises(ValueError) as caught:
        build()
    return f"ValueError: {caught.value}"


@pytest.mark.parametrize(
    "message",
    [
        _error_of(lambda: ZeroMuon([torch.nn.Parameter(torch.ones(2, 2))])),
        _error_of(lambda: ZeroMuon([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])),
        f"ValueError: {state._foreign({'state': {}})}",
        watch._unused_message(["a.weight"]),
    ],
    ids=["bare list", "no tags", "foreign state", "unused parameter"],
)
def test_the_traps_are_quoted_as_they_are_said(message):
    quoted = [text.split("...")[0].rstrip(" (;,") for text in re.findall(r"`([^`]+\.\.\.[^`]*)`", TEXT)]
    said = re.sub(r"\b1\b", "N", message)
    assert any(len(text) > 20 and said.startswith(text) for text in quoted), said
