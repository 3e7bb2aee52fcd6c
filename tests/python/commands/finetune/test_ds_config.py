"""The configuration: overrides and "auto"."""

from __future__ import annotations

import pytest

from zeromuon.base.shipped import config_file
from zeromuon.commands import cli
from zeromuon.commands.finetune import ds_config, ds_keys
from zeromuon.commands.finetune.settings import Settings

SETTINGS = Settings(model="m", data="d", config="c.json", ranks=3, steps=50, batch=4)


def shipped():
    return ds_config.read_config(config_file(cli.DEFAULT_CONFIG, "--config"))


def test_the_shipped_configuration_is_stage_3_with_offload_and_has_a_value_for_every_auto():
    filled = ds_config.fill_auto(shipped(), SETTINGS, bf16=False)
    ds_config.check_config(filled, "shipped")
    assert filled["train_batch_size"] == 12
    assert filled["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert filled["scheduler"]["params"]["total_num_steps"] == 50
    assert filled["scheduler"]["params"]["warmup_max_lr"] == filled["optimizer"]["params"]["lr"]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_compute_dtype_follows_the_machine(bf16):
    assert ds_config.fill_auto(shipped(), SETTINGS, bf16)["bf16"]["enabled"] is bf16


def test_a_compute_dtype_that_the_configuration_names_is_kept():
    config = ds_config.override(shipped(), ("bf16.enabled=false",))
    assert ds_config.fill_auto(config, SETTINGS, bf16=True)["bf16"]["enabled"] is False


def test_overrides_reach_nested_values_and_leave_the_original_alone():
    config = {"optimizer": {"type": "ZeroMuon", "params": {"lr": 1}}}
    changed = ds_config.override(config, ("optimizer.params.lr=1e-12", "optimizer.params.ns=cubic", "a.b=true"))
    assert changed["optimizer"]["params"] == {"lr": 1e-12, "ns": "cubic"}
    assert changed["a"] == {"b": True} and config["optimizer"]["params"] == {"lr": 1}


def test_an_auto_without_a_value_is_refused_by_name():
    config = {**shipped(), "gradient_clipping": "auto"}
    with pytest.raises(ValueError, match='gradient_clipping is "auto"'):
        ds_config.fill_auto(config, SETTINGS, bf16=False)


class _Noting(dict):
    """Notes the keys that somebody asks for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


def test_every_key_that_deepspeed_asks_for_is_known(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = _Noting({"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(config)
    assert len(config.asked) > 40
    ds_keys.check_keys(dict.fromkeys(config.asked - {"optimizer", "scheduler"}), "the config of DeepSpeed")


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("zero_optimization=3", "zero_optimization is 3, expected an object"),
        ("zero_optimization=null", "zero_optimization is null, expected an object"),
        ('zero_optimization.stage="3"', 'zero_optimization.stage is "3", expected 3'),
        ("bf16=true", "bf16 is true, expected an object"),
        ("scheduler.params=3", "scheduler.params is 3, expected an object"),
        ("optimizer.type=5", 'optimizer.type is 5, expected the text "ZeroMuon"'),
        ("optimizer.params.lr=NaN", "optimizer.params.lr is nan, expected a number"),
        ("gradient_accumulation_steps=0", "gradient_accumulation_steps is 0, expected a number from 1 on"),
        ("gradient_accumulation_steps=1.5", "gradient_accumulation_steps is 1.5, expected a number from 1 on"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(assignment, words):
    with pytest.raises(ValueError) as error:
        ds_config.check_config(ds_config.override(shipped(), (assignment,)), "c.json")
    assert f"c.json: {words}" in str(error.value)


def test_of_an_override_that_is_given_twice_the_last_counts():
    settings = Settings(model="m", data="d", config="c", ranks=1, overrides=("a=1", "b=2", "a=3"))
    assert settings.differences({"overrides": ("a=3",)}) == []
    assert settings.differences({"overrides": ("a=1",)}) and settings.differences({"overrides": ("c=1",)})


def test_keys_that_differ_are_named_with_their_path():
    a, b = {"x": {"y": 1, "z": 2}, "same": [1]}, {"x": {"y": 3, "z": 2}, "same": [1], "new": None}
    assert ds_config.differing_keys(a, b) == ["new", "x.y"]
