"""What a checkpoint says of how a step was computed."""

import warnings
from types import SimpleNamespace

import pytest

from tests.python.optimizer.other_options import OTHER
from zeromuon.optimizer import state
from zeromuon.optimizer.options import ON_LOAD, OPTIONS, option_names, validate_options

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


# ---- every option -------------------------------------------------------------------------------------

# What a load does with a value that differs; a new option must be thought about here, and in the table.
ON_LOAD_OF = {
    **dict.fromkeys(("lr", "adam_lr", "weight_decay", "momentum", "nesterov", "betas", "eps"), "taken"),
    **dict.fromkeys(("cautious_wd", "scale", "ns", "ns_form", "ns_dtype", "wire_dtype"), "said"),
    **dict.fromkeys(("qk_clip", "qk_clip_threshold", "qk_clip_alpha", "qk_clip_statistic"), "said"),
    "log_max_attention_logit": "free",
    "momentum_kind": "refused",
    "momentum_dtype": "converted",
    **dict.fromkeys(("momentum_device", "cpu_kernels", "fused_step", "max_bytes_in_flight"), "free"),
    **dict.fromkeys(("cpu_threads", "stage_timeout_s"), "free"),
}
BOUND = SimpleNamespace(plan=PLAN, sub_groups=[])
WORDS = {"said": "going on with", "taken": "as in torch", "converted": "its momentum is converted to"}


def saved(**options) -> dict:
    """A state dict as a run with these options writes it."""
    return state.save_entry(
        {"state": {}, "param_groups": [{"lr": 1.0, "params": []}]}, BOUND, validate_options(options)
    )


def loaded(state_dict: dict, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.load_entry(state_dict, BOUND, validate_options(options), 1)
    return [str(w.message) for w in caught]


def test_every_option_is_thought_about():
    assert ON_LOAD_OF == {option.name: option.on_load for option in OPTIONS}
    assert OTHER.keys() == ON_LOAD_OF.keys() and set(ON_LOAD_OF.values()) == set(ON_LOAD)
    validated = validate_options(OTHER)
    assert not [option.name for option in OPTIONS if validated[option.name] == option.default]


def test_every_option_is_in_the_entry():
    entry = saved(**OTHER)[state.ENTRY]
    assert list(entry["options"]) == option_names()
    assert entry["options"] == {k: list(v) if isinstance(v, tuple) else v for k, v in validate_options(OTHER).items()}


@pytest.mark.parametrize("name", ON_LOAD_OF)
@pytest.mark.parametrize("of_the_run", [False, True])
def test_a_load_does_with_another_value_what_the_table_says(name, of_the_run):
    other = {name: OTHER[name]}
    before, now = (saved(), other) if of_the_run else (saved(**other), {})
    if ON_LOAD_OF[name] == "refused":
        with pytest.raises(ValueError, match=f'^{name}: the checkpoint was written with "'):
            loaded(before, **now)
        return
    said = loaded(before, **now)
    expected = WORDS.get(ON_LOAD_OF[name])
    assert len(said) == (expected is not None)
    assert all(text.startswith(f"{name}: the checkpoint was written with ") and expected in text for text in said)


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "others"])
def test_a_load_of_the_same_options_says_nothing(options):
    assert loaded(saved(**options), **options) == []


def test_an_option_that_the_checkpoint_lacks_does_not_differ():
    before = saved()
    del before[state.ENTRY]["options"]["cautious_wd"]
    assert loaded(before, cautious_wd=True) == []


# ---- values of parameter groups -----------------------------------------------------------------------

ROLES = ["muon", "adamw"]
NEW = {"needs": [state.RATES_IN_GROUPS], "groups": [{"lr": 0.02, "momentum": 0.8}, {"lr": 0.001, "betas": [0.8, 0.9]}]}
EARLIER = {"groups": [{"lr": 0.02, "adam_ratio": 0.05}, {"lr": 0.02, "initial_lr": 0.04, "adam_ratio": 0.05}]}


def groups_after(load, entry: dict) -> list[dict]:
    """What the groups say after a load that copied the saved ones, or, of the universal format, the first one."""
    options = validate_options({"lr": 0.5, "adam_lr": 0.25})
    now = [{**state.group_values(role, options), "params": []} for role in ROLES]
    load(now, entry, options)
    return now


def native(now: list[dict], entry: dict, options: dict) -> None:
    for group, saved in zip(now, entry["groups"]):
        group.update(saved)
        group.pop("adam_ratio", None)
    state.settle_groups(now, ROLES, entry, options)


def universal(now: list[dict], entry: dict, options: dict) -> None:
    first = {k: v for k, v in entry["groups"][0].items() if k != "adam_ratio"}
    binding = SimpleNamespace(plan=PLAN, sub_groups=[SimpleNamespace(flat=0, role="muon", specs=[])])
    full = {"format": state.FORMAT, "roles": {}, "options": {}, "arithmetic": PLAN.arithmetic_hash, **entry}
    for group in now:
        group.update(first, **{state.ENTRY: full})
    state.settle_states = lambda *_: None  # put back by monkeypatch
    assert state.adopt_universal({0: {"exp_avg_sq": 0}}, now, ROLES, binding, options) is full


@pytest.mark.parametrize("load", [native, universal])
def test_a_load_brings_back_what_each_group_said(load, monkeypatch):
    monkeypatch.setattr(state, "settle_states", state.settle_states)
    muon, adamw = groups_after(load, NEW)
    assert (muon["lr"], muon["momentum"], muon["nesterov"]) == (0.02, 0.8, True)
    assert (adamw["lr"], list(adamw["betas"]), adamw["eps"]) == (0.001, [0.8, 0.9], 1e-8)
    assert "betas" not in muon and "momentum" not in adamw and "nesterov" not in adamw


@pytest.mark.parametrize("load", [native, universal])
def test_groups_of_an_earlier_checkpoint_get_the_rates_that_they_had(load, monkeypatch):
    monkeypatch.setattr(state, "settle_states", state.settle_states)
    muon, adamw = groups_after(load, EARLIER)
    assert muon["lr"] == 0.02 and adamw["lr"] == pytest.approx(0.001)
    assert (muon["momentum"], adamw["betas"]) == (0.95, (0.9, 0.95))
    assert adamw["initial_lr"] == pytest.approx(0.002)
