"""The `zeromuon` entry: what Python and convert-optimizer write is what base/entry_schema.json says, and what a later version
may add is refused by name or kept."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.python.ckpt import tool
from tests.python.ckpt.fixtures.make_own import OWN
from tests.python.ckpt.resumes import OWN_FOLDER
from zeromuon.base.entry import ENTRY, FORMAT, SCHEMA, check_entry
from zeromuon.optimizer.options import option_names

PLAIN = {"bool": bool, "int": int, "float": float, "str": str}
BOTH = {"by Python": "ZeroMuon-fp32", "by convert-optimizer": "AdamW-fp32 to ZeroMuon"}  # of the same model


def misfits(value, kind: str, path: str = ENTRY) -> list[str]:
    """What of a value is not as the schema's kind says, by its path."""
    container, _, of = kind.partition(" of ")
    if kind.endswith(" or null"):
        return [] if value is None else misfits(value, kind.removesuffix(" or null"), path)
    if kind in PLAIN:
        return [] if type(value) is PLAIN[kind] else [f"{path} is {type(value).__name__}, not {kind}"]
    if container == "list" and isinstance(value, list):
        return [found for i, item in enumerate(value) for found in misfits(item, of, f"{path}[{i}]")]
    if container == "dict" and isinstance(value, dict):
        return [found for key, item in value.items() for found in misfits(item, of, f"{path}.{key}")]
    if kind not in SCHEMA or not isinstance(value, dict):
        return [f"{path} is {type(value).__name__}, not {kind}"]
    known = {**SCHEMA[kind], **SCHEMA.get(f"{kind}_optional", {})}
    allowed = {*known, *(option_names() if kind == "options" else ())}
    found = [f"{path} lacks {name}" for name in SCHEMA[kind] if name not in value]
    found += [f"{path}.{name} is not in the schema" for name in value if name not in allowed]
    return found + [m for name in known if name in value for m in misfits(value[name], known[name], f"{path}.{name}")]


def optimizer_files(folder: Path) -> list[Path]:
    """Those of a checkpoint that have the entry."""
    return sorted(
        path for path in folder.rglob("*.pt") if "optim_states" in path.name or path.name == "optimizer_state.pt"
    )


def state_dict_of(content: dict) -> dict:
    inner = content["optimizer_state_dict"]
    return inner.get("optimizer_state_dict", inner)


def entry_in(folder: Path) -> dict:
    return state_dict_of(torch.load(optimizer_files(folder)[0], weights_only=False))[ENTRY]


def changed(name: str, folder: Path, **fields) -> str:
    """A copy of an earlier checkpoint whose entries, also those in groups, have these fields, too."""
    shutil.copytree(OWN_FOLDER / name, folder)
    for path in optimizer_files(folder):
        content = torch.load(path, weights_only=False)
        state_dict = state_dict_of(content)
        state_dict[ENTRY].update(fields)
        state_dict["param_groups"][0][ENTRY].update(fields)
        torch.save(content, path)
    return str(folder)


@pytest.fixture
def written(saved, output):
    """written(by): the entry that Python or convert-optimizer wrote for the model of the zoo."""
    folders = {
        "by Python": lambda: saved(2, BOTH["by Python"]).folder / "run",
        "by convert-optimizer": lambda: output(BOTH["by convert-optimizer"])[0],
    }
    return lambda by: entry_in(folders[by]())


@pytest.mark.parametrize("by", BOTH)
def test_an_entry_has_the_fields_and_types_of_the_schema(by, written):
    assert misfits(written(by), "fields") == []


def test_python_and_convert_optimizer_write_the_same_entry_but_for_the_options_that_only_a_run_has(written):
    python, converted = (written(by) for by in BOTH)
    assert list(python) == list(converted) == list(SCHEMA["fields"])
    assert python["roles"] == converted["roles"]
    assert set(converted["options"]) == set(SCHEMA["options"]) and set(python["options"]) == set(option_names())
    assert [sorted(group) for group in python["groups"]] == [sorted(group) for group in converted["groups"]]


def test_a_field_that_only_one_of_them_writes_is_seen(written):
    entry = written("by Python")
    split = {"stack": 4, "transposed": False, "sizes": [2, 2], "heads": 1, "per_head": False}
    assert misfits({**entry, "splits": {"first.weight": split, "last.weight": {}}}, "fields") == []
    assert misfits({**entry, "splits": {"w": {"sizes": 3}}}, "fields") == [
        "zeromuon.splits.w.sizes is int, not list of int"
    ]
    assert misfits({**entry, "blocks": {}}, "fields") == ["zeromuon.blocks is not in the schema"]
    assert misfits({k: v for k, v in entry.items() if k != "needs"}, "fields") == ["zeromuon lacks needs"]
    assert misfits({**entry, "format": "1"}, "fields") == ["zeromuon.format is str, not int"]
    groups = [{**entry["groups"][0], "lr": None}, *entry["groups"][1:]]
    assert misfits({**entry, "groups": groups}, "fields") == ["zeromuon.groups[0].lr is NoneType, not float"]


def test_the_first_entries_are_read():
    for name in OWN:
        check_entry(entry_in(OWN_FOLDER / name))


def test_a_need_that_this_version_does_not_know_is_refused_by_name(tmp_path):
    for name in OWN:
        run = changed(name, tmp_path / name, needs=["blocks of heads"])
        with pytest.raises(ValueError, match="'blocks of heads'.* later one"):
            check_entry(entry_in(tmp_path / name))
        for verb in (
            lambda: tool.inspect(run),
            lambda: tool.reshard(run, str(tmp_path / "out"), 3),
            lambda: tool.convert_optimizer(run, str(tmp_path / "out"), "AdamW"),
        ):
            with pytest.raises(tool.FormatError, match="blocks of heads.* later one"):
                verb()


def test_another_format_is_refused(tmp_path):
    run = changed("one", tmp_path / "one", format=FORMAT + 1)
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        check_entry(entry_in(tmp_path / "one"))
    with pytest.raises(
        tool.FormatError, match=f"expected a ZeroMuon state of format {FORMAT}, got format {FORMAT + 1}"
    ):
        tool.inspect(run)


@pytest.mark.parametrize("field", [f for f in SCHEMA["fields"] if f not in SCHEMA["later"] and f != "format"])
def test_an_entry_that_lacks_a_field_is_refused_by_name(field):
    entry = {k: v for k, v in entry_in(OWN_FOLDER / "one").items() if k != field}
    with pytest.raises(ValueError, match=f"no {field}: it is damaged"):
        check_entry(entry)


@pytest.mark.parametrize("name", OWN)
def test_what_is_not_known_and_not_needed_is_kept_by_every_verb(name, tmp_path):
    later = {"note": [1, 2.5, {"deep": None}]}
    run = changed(name, tmp_path / "changed", later=later)
    check_entry(entry_in(tmp_path / "changed"))
    other = "ema" if name == "one" else "heavy_ball"
    verbs = {
        "reshard": lambda out: tool.reshard(run, out, 3),
        "universal": lambda out: tool.universal(run, f"{out}/universal"),
        "convert-optimizer": lambda out: tool.convert_optimizer(run, f"{out}/made", "ZeroMuon", momentum_kind=other),
    }
    if name == "universal":
        verbs.pop("universal")
    for verb, run_verb in verbs.items():
        run_verb(str(tmp_path / verb))
        entry = entry_in(tmp_path / verb)
        assert entry["later"] == later, verb
        check_entry(entry)


def test_a_conversion_of_the_momentum_keeps_the_options_of_the_run(tmp_path):
    tool.convert_optimizer(str(OWN_FOLDER / "one"), str(tmp_path), "ZeroMuon", momentum_kind="ema")
    before, after = entry_in(OWN_FOLDER / "one"), entry_in(tmp_path)
    assert after["options"] == {**before["options"], "momentum_kind": "ema"}
    assert after["arithmetic"] == before["arithmetic"]
    assert misfits({k: v for k, v in after.items() if k != "blocks"}, "fields") == []
