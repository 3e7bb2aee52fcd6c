"""The options of ZeroMuon: what is taken, what is refused, and whether the message helps."""

import inspect
import math
import subprocess
import sys
from pathlib import Path

import pytest

from zeromuon.optimizer import checks
from zeromuon.optimizer.checks import nearest_name
from zeromuon.optimizer.options import ON_LOAD, OPTIONS, check_together, option_names, options_given, options_markdown
from zeromuon.optimizer.options import validate_options


def validate(**given):
    return validate_options(given)


def refusal(**given) -> str:
    with pytest.raises(ValueError) as caught:
        validate(**given)
    return str(caught.value)


def test_no_options_at_all_give_every_documented_default():
    assert validate() == {
        "lr": 1e-3,
        "adam_lr": None,
        "momentum": 0.95,
        "nesterov": True,
        "momentum_kind": "ema",
        "weight_decay": 0.0,
        "cautious_wd": False,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "scale": "match_rms_adamw",
        "ns": "jordan",
        "ns_form": "auto",
        "ns_dtype": "auto",
        "wire_dtype": "auto",
        "qk_clip": False,
        "qk_clip_threshold": 100.0,
        "qk_clip_alpha": 0.5,
        "qk_clip_statistic": "exact",
        "log_max_attention_logit": False,
        "momentum_device": "auto",
        "momentum_dtype": "float32",
        "cpu_kernels": "auto",
        "fused_step": "auto",
        "max_bytes_in_flight": "auto",
        "cpu_threads": "auto",
        "stage_timeout_s": "auto",
    }


def test_values_as_json_gives_them_are_normalised():
    options = validate(lr=1, betas=[0, 0.5], ns=[[3, -4, 2], (1.5, -0.5, 0.0)])
    assert options["lr"] == 1.0 and isinstance(options["lr"], float)
    assert options["betas"] == (0.0, 0.5)
    assert options["ns"] == ((3.0, -4.0, 2.0), (1.5, -0.5, 0.0))


def test_validated_options_validate_to_themselves():
    options = validate(ns=[[1, 2, 3]], adam_lr=0.1, betas=[0.8, 0.9])
    assert validate(**options) == options


def test_the_given_dict_is_left_as_it_was():
    given = {"betas": [0.9, 0.95]}
    validate_options(given)
    assert given == {"betas": [0.9, 0.95]}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("momentun", "momentum"),
        ("weigth_decay", "weight_decay"),
        ("LR", "lr"),
        ("adamlr", "adam_lr"),
        ("muon_lr", "lr"),
        ("ns_method", "ns"),
        ("beta", "momentum"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_valid_name(wrong, right):
    message = refusal(**{wrong: 0.5})
    assert f"{wrong}: unknown option, did you mean {right}?" in message


def test_an_unknown_option_that_resembles_none_lists_them_all():
    message = refusal(zzzzzz=1)
    assert all(name in message for name in option_names())


@pytest.mark.parametrize("name", ["lr", "adam_lr", "weight_decay", "eps"])
@pytest.mark.parametrize("value", [-1e-9, -1, math.nan, math.inf, -math.inf])
def test_a_rate_that_is_negative_or_not_finite_is_refused(name, value):
    message = refusal(**{name: value})
    assert f"{name}: got {value!r}, expected a finite number of at least 0" in message


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 2, math.nan, math.inf])
def test_a_decay_outside_zero_to_one_is_refused(value):
    assert f"momentum: got {value!r}, expected a number in [0, 1)" in refusal(momentum=value)
    assert "expected a number in [0, 1)" in refusal(betas=(0.9, value))


def test_zero_is_a_momentum_and_a_weight_decay_and_an_eps():
    options = validate(momentum=0, weight_decay=0, eps=0, betas=(0, 0))
    assert (options["momentum"], options["eps"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "given",
    [
        {"lr": "1e-3"},
        {"lr": "auto"},
        {"lr": None},
        {"lr": True},
        {"momentum": "0.9"},
        {"nesterov": 1},
        {"nesterov": "true"},
        {"cautious_wd": 1},
        {"betas": 0.9},
        {"betas": [0.9]},
        {"betas": [0.9, 0.95, 0.99]},
        {"betas": "ab"},
        {"betas": ["a", "b"]},
        {"scale": 1},
        {"scale": None},
        {"ns": 5},
        {"ns": []},
        {"ns": None},
        {"ns_form": ["gram"]},
        {"wire_dtype": float},
        {"fused_step": True},
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(given):
    ((name, value),) = given.items()
    message = refusal(**given)
    assert message.startswith(f"ZeroMuon options: {name}: got {value!r}, expected ")


@pytest.mark.parametrize("ns", [[3.4, -4.7, 2.0], [[1, 2]], [[1, 2, 3], [1, 2, "c"]], [[1, 2, math.nan]], ["jordan"]])
def test_coefficients_that_are_not_finite_triples_are_refused(ns):
    assert "(a, b, c)" in refusal(ns=ns)


def test_an_unknown_coefficient_set_lists_the_valid_names(monkeypatch):
    monkeypatch.setattr(checks, "coefficient_sets", lambda: ["jordan", "you", "polar_express"])
    message = refusal(ns="jordon")
    assert '"jordan", "you" or "polar_express"' in message and "did you mean 'jordan'?" in message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("momentum_kind", ("ema", "heavy_ball")),
        ("scale", ("match_rms_adamw", "original", "spectral_unclamped", "none")),
        ("ns_form", ("auto", "standard", "gram", "gram_restarts")),
        ("ns_dtype", ("auto", "float32", "bfloat16", "float16")),
        ("wire_dtype", ("auto", "float32", "bfloat16")),
        ("momentum_device", ("auto", "device", "cpu", "cpu_streamed")),
        ("momentum_dtype", ("float32", "bfloat16")),
        ("fused_step", ("auto", "on", "off")),
        ("cpu_kernels", ("auto", "generic", "avx2", "avx512", "avx512_bf16", "onednn")),
    ],
)
def test_a_choice_takes_its_values_and_names_them_when_it_refuses(name, values):
    for value in values:
        assert validate(**{name: value})[name] == value
    message = refusal(**{name: "nonsense"})
    assert f"{name}: got 'nonsense'" in message and all(f'"{value}"' in message for value in values)


def test_cautious_decay_is_refused_where_there_is_none():
    message = refusal(cautious_wd=True, cpu_kernels="onednn")
    assert "cautious_wd: got True together with cpu_kernels='onednn', whose AdamW has no such decay" in message
    assert validate(cautious_wd=False, cpu_kernels="onednn")["cpu_kernels"] == "onednn"
    with pytest.raises(ValueError, match="cautious_wd: got True together with adam_w_mode=False"):
        check_together({**validate(cautious_wd=True), "adam_w_mode": False})
    check_together({**validate(cautious_wd=True), "adam_w_mode": True})
    check_together({**validate(), "adam_w_mode": False})


@pytest.mark.parametrize("value", [0, -1, 1.5, 1e9, 2**63, True, "1GB", None])
def test_a_bound_that_is_no_whole_number_of_bytes_is_refused(value):
    assert f'max_bytes_in_flight: got {value!r}, expected "auto" or a whole number' in refusal(
        max_bytes_in_flight=value
    )
    assert validate(max_bytes_in_flight=2**30)["max_bytes_in_flight"] == 2**30


@pytest.mark.parametrize("value", [0, -1, 1e-4, 2e11, math.inf, "600"])
def test_a_time_limit_that_is_no_time_is_refused(value):
    assert f"stage_timeout_s: got {value!r}, expected" in refusal(stage_timeout_s=value)
    assert validate(stage_timeout_s=5)["stage_timeout_s"] == 5.0


def test_lr_zero_is_refused_only_together_with_adam_lr():
    assert validate(lr=0)["lr"] == 0.0
    assert "expected lr above 0" in refusal(lr=0, adam_lr=1e-3)
    assert validate(lr=1e-3, adam_lr=0)["adam_lr"] == 0.0


def test_several_faults_are_named_at_once():
    message = refusal(lr=-1, betas=(0.9, 1), momentun=0.9)
    assert "lr: got -1" in message and "betas: got (0.9, 1)" in message and "momentun" in message


def test_the_nearest_name_is_none_when_nothing_is_near():
    assert nearest_name("momentun", ["lr", "momentum"]) == "momentum"
    assert nearest_name("qqq", ["lr", "momentum"]) is None


def test_the_markdown_table_has_one_row_per_option_with_its_default():
    lines = options_markdown().splitlines()
    assert len(lines) == 2 + len(OPTIONS)
    assert len({line.count("|") for line in lines}) == 1
    assert '| `ns_dtype` | `"auto"` | - | "auto", "float32", "bfloat16", "float16" |' in options_markdown()


def test_the_compiled_core_names_the_coefficient_sets_when_none_are_given():
    assert validate_options({"ns": "polar_express"})["ns"] == "polar_express"
    with pytest.raises(ValueError, match='"jordan"'):
        validate_options({"ns": "nonsense"})


def test_importing_the_package_and_its_options_imports_no_torch():
    code = "import sys, zeromuon, zeromuon.optimizer.options; assert 'torch' not in sys.modules; print(zeromuon.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_names_what_it_has_when_asked_for_something_else():
    import zeromuon

    with pytest.raises(AttributeError, match="param_groups"):
        zeromuon.param_group  # noqa: B018
    assert {"ZeroMuon", "attach", "register", "param_groups"} <= set(dir(zeromuon))


def test_the_documented_table_is_the_one_in_the_code():
    page = (Path(__file__).parents[3] / "docs" / "options.md").read_text()
    assert options_markdown() in page, "docs/options.md is out of date: paste options_markdown() into it"
    for name, meaning in ON_LOAD.items():
        assert f"- {name}: {meaning}" in page


# ---- what is made from the table ----------------------------------------------------------------------


def test_the_constructor_shows_every_option_with_its_default():
    from zeromuon import ZeroMuon

    shown = inspect.signature(ZeroMuon).parameters
    assert list(shown) == ["params", *option_names(), "unknown"]
    assert {name: shown[name].default for name in option_names()} == {o.name: o.default for o in OPTIONS}


def test_the_docstring_tells_allowed_values_units_and_meaning_of_every_option():
    from zeromuon import ZeroMuon

    assert "{options}" not in ZeroMuon.__doc__ and max(map(len, ZeroMuon.__doc__.splitlines())) <= 120
    text = " ".join(ZeroMuon.__doc__.split())
    for option in OPTIONS:
        unit = f"; {option.unit}" if option.unit else ""
        assert f" {option.name} ({option.allowed}{unit}): {option.meaning} " in text


def test_options_are_given_by_position_or_by_name_as_in_a_call():
    assert options_given((0.1,), {"betas": (0, 0), "momentun": 1}) == {"lr": 0.1, "betas": (0, 0), "momentun": 1}
    with pytest.raises(TypeError, match="multiple values for argument 'lr'"):
        options_given((0.1,), {"lr": 0.2})
    with pytest.raises(TypeError, match="too many positional arguments"):
        options_given((0.1,) * 50, {})


def test_every_row_says_what_a_load_does_and_whose_hyper_parameter_it_is():
    for option in OPTIONS:
        assert option.on_load in ON_LOAD and set(option.roles) <= {"muon", "adamw"}, option.name
