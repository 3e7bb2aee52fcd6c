"""Roles on one model of every family of transformers, and the heads that per_head splits beside those of DeepSpeed."""

import re
import warnings
from types import SimpleNamespace

import deepspeed
import pytest
import transformers

from tests.python.selection import zoo
from zeromuon.selection.rules import roles_for

# Where DeepSpeed 0.19.8, which knows one config for a whole model, takes the heads of another part for those of these, or the
# width of an attention for that of its indexer.
OWN_HEADS = re.compile(r"indexer\.|vision|audio|swin")
NO_MATRICES = ("ibert",)  # its layers are none of torch's


def tagged(model) -> dict[str, int]:
    """Name -> heads, as DeepSpeed's per_head_muon tags them."""
    config = SimpleNamespace(optimizer_name="muon", optimizer_params={"per_head_muon": True})
    try:
        deepspeed.set_optimizer_flags(config, model)
        return {name: p.muon_num_heads for name, p in model.named_parameters() if p.muon_num_heads and p.requires_grad}
    except Exception:  # it finds nothing, or the config does not say its numbers for all layers at once
        return {}
    finally:
        for p in model.parameters():
            for tag in ("use_muon", "muon_num_heads", "muon_head_dim"):
                p.__dict__.pop(tag, None)


def heads(model) -> dict[str, int]:
    """Name -> blocks that per_head makes of what is one matrix without it."""
    try:
        found = roles_for(model, split_fused=False, per_head="qkv").values()
    except ValueError:
        return {}
    whole = {spec.name: spec.split for spec in roles_for(model, split_fused=False).values()}
    return {spec.name: len(spec.blocks) or 1 for spec in found if spec.split != whole[spec.name]}


@pytest.fixture(scope="module")
def animals():
    """(lines of roles, name -> (DeepSpeed's heads, ours)), of all models that can be built."""
    lines, tags = [], {}
    for kind, name in zoo.classes().items():
        model = zoo.built(kind, name)
        if model is None:
            continue
        try:
            lines.append(zoo.line(name, list(roles_for(model).values())))
        except ValueError as error:
            lines.append(f"{name} | {str(error).partition(':')[0]}")
        tags[kind] = tagged(model), heads(model)
    return sorted(set(lines)), tags


def test_the_roles_of_every_family_are_those_that_were_judged(animals):
    lines, _ = animals
    expected = zoo.ROLES.read_text().splitlines()
    if transformers.__version__ != zoo.VERSION:
        changed = set(lines) ^ set(expected)
        warnings.warn(f"roles were judged with transformers {zoo.VERSION}; {len(changed)} lines differ", stacklevel=1)
        return
    assert len(expected) > 300
    assert lines == expected


def test_per_head_muon_splits_what_deepspeed_tags_and_where_it_differs_the_module_knows_better(animals):
    _, tags = animals
    differing = {
        (kind, name): (count, ours.get(name))
        for kind, (theirs, ours) in tags.items()
        for name, count in theirs.items()
        if ours.get(name) != count and kind not in NO_MATRICES and not OWN_HEADS.search(name)
    }
    assert not differing
    assert sum(bool(theirs) for theirs, _ in tags.values()) > 250, "it tagged most models"
    more = [kind for kind, (theirs, ours) in tags.items() if ours.keys() - theirs.keys()]
    assert {"gemma4", "kimi_linear", "swin", "llava"} <= set(more), (
        "those of towers, linear attention and layers of their own"
    )
