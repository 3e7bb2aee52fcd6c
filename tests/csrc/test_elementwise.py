"""The element-wise kernels through Python: against torch's casts and optimizer, and bad input."""

import math

import pytest
import torch

from zeromuon import _lab

HALVES = [torch.bfloat16, torch.float16]
HYPER = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 1}
PATHS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=f"{name}: {reason}"))
    for name, reason in _lab.cpu_kernels()
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, except that a NaN is a NaN: torch's casts do not keep payloads."""
    words = {2: torch.int16, 4: torch.int32}[a.element_size()]
    nan = a.isnan()
    return bool(nan.equal(b.isnan()) and a[~nan].view(words).equal(b[~nan].view(words)))


def arrays(numel: int = 100) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = ["weight", "gradient", "exp_avg", "exp_avg_sq"]
    return {name: torch.randn(numel) ** 2 for name in names}


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_decoded_as_torch_does(kernels, dtype):
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    out = torch.empty(2**16)
    assert _lab.cast_(out, halves, kernels=kernels)
    assert same(out, halves.float())


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("dtype", HALVES)
def test_floats_are_encoded_as_torch_does(kernels, dtype):
    torch.manual_seed(1)
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    bits = halves.view(torch.int32)
    tie = 0x8000 if dtype == torch.bfloat16 else 0x1000
    beside = [(bits + step).view(torch.float32) for step in (0, 1, tie - 1, tie, tie + 1)]
    anything = torch.randint(-(2**31), 2**31, (10**6,)).to(torch.int32).view(torch.float32)
    values = torch.cat([*beside, anything, torch.randn(10**5)])
    out = torch.empty(values.numel(), dtype=dtype)
    assert not _lab.cast_(out, values, kernels=kernels)
    assert same(out, values.to(dtype))


def test_a_cast_says_whether_all_values_written_are_finite():
    out = torch.empty(3, dtype=torch.float16)
    assert _lab.cast_(out, torch.tensor([1.0, 65504.0, 65519.0]))
    assert not _lab.cast_(out, torch.tensor([1.0, 65504.0, 65520.0]))


@pytest.mark.parametrize("kernels", PATHS)
def test_adamw_follows_torchs_for_ten_steps(kernels):
    a = arrays(10_001)
    parameter = torch.nn.Parameter(a["weight"].clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    m, v = torch.zeros(10_001), torch.zeros(10_001)
    low = torch.empty(10_001, dtype=torch.bfloat16)
    for step in range(1, 11):
        gradient = torch.randn(10_001)
        parameter.grad = gradient / 4
        optimizer.step()
        hyper = {**HYPER, "step": step, "gradient_scale": 0.25}
        _lab.adamw_(a["weight"], gradient, m, v, low, **hyper, kernels=kernels)
    assert (a["weight"] - parameter.detach()).abs().max() <= 1e-6 * a["weight"].abs().max()
    assert low.equal(a["weight"].bfloat16())


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("kind", ["ema", "heavy_ball"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_apply_follow_their_formulas(kernels, kind, nesterov):
    gradient, m = torch.randn(20_001), torch.randn(20_001)
    wire = torch.empty(20_001, dtype=torch.bfloat16)
    gain = 0.1 if kind == "ema" else 1.0
    expected = 0.9 * m + gain * 0.5 * gradient
    mixed = 0.9 * expected + gain * 0.5 * gradient if nesterov else expected
    options = {"beta": 0.9, "kind": kind, "nesterov": nesterov, "gradient_scale": 0.5}
    assert _lab.momentum_(gradient, m, wire, **options, kernels=kernels)
    torch.testing.assert_close(m, expected)
    torch.testing.assert_close(wire.float(), mixed, rtol=2**-8, atol=1e-6)
    gradient[-1] = math.inf
    assert not _lab.momentum_(gradient, m, wire, **options, kernels=kernels)

    weight, low = torch.randn(20_001), torch.empty(20_001, dtype=torch.float16)
    expected = weight * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * gradient
    options = {"lr": 1e-2, "weight_decay": 0.1, "scale": 0.2}
    _lab.apply_(weight, gradient, low, **options, kernels=kernels)
    torch.testing.assert_close(weight, expected)
    assert low.equal(weight.half())


@pytest.mark.parametrize("kernels", [p for p in PATHS if p.values[0] != "onednn"])
def test_cautious_decay_follows_its_formula_for_both_roles(kernels):
    a, start = arrays(20_001), torch.randn(20_001)
    a["weight"], a["gradient"] = start.clone(), torch.randn(20_001)
    a["exp_avg"].zero_()
    a["exp_avg_sq"].zero_()
    _lab.adamw_(**a, **HYPER, decay="cautious", kernels=kernels)
    update = a["gradient"] / (a["gradient"].abs() + 1e-8)  # of the first step
    decayed = torch.where(update * start >= 0, start * (1 - 1e-2 * 0.1), start)
    assert 0 < (decayed == start).sum() < start.numel()
    torch.testing.assert_close(a["weight"], decayed - 1e-2 * update)

    weight, update = start.clone(), torch.randn(20_001)
    _lab.apply_(weight, update, lr=1e-2, weight_decay=0.1, scale=0.2, cautious=True, kernels=kernels)
    decayed = torch.where(update * start >= 0, start * (1 - 1e-2 * 0.1), start)
    torch.testing.assert_close(weight, decayed - 1e-2 * 0.2 * update)


def test_the_roofs_copy_and_add():
    a, b = torch.randn(100_003), torch.randn(100_003)
    out = torch.empty(100_004)[1:]
    _lab.stream_copy_(out, a)
    assert out.equal(a)
    _lab.stream_triad_(out, a, b, 0.5)
    torch.testing.assert_close(out, a + 0.5 * b)


def test_auto_is_named_and_can_run():
    kernels = dict(_lab.cpu_kernels())
    assert list(kernels) == ["auto", "reference", "generic", "avx2", "avx512", "avx512_bf16", "onednn"]
    assert kernels[_lab.chosen_cpu_kernels()] == ""


def test_kernels_that_cannot_run_here_are_refused_with_the_reason():
    for name, reason in _lab.cpu_kernels():
        if reason:
            with pytest.raises(ValueError, match=f'"{name}" cannot run here') as caught:
                _lab.adamw_(**arrays(), **HYPER, kernels=name)
            assert reason in str(caught.value)
            assert f'"auto" would use {_lab.chosen_cpu_kernels()}' in str(caught.value)


BAD_ARRAYS = {
    "weight of another dtype": ("weight", lambda t: t.double(), "weight in float32"),
    "bfloat16 weight": ("weight", lambda t: t.bfloat16(), "weight in float32, got"),
    "float16 gradient": ("gradient", lambda t: t.half(), "gradient in float32 or bfloat16"),
    "integer gradient": ("gradient", lambda t: t.long(), "gradient in float32, bfloat16 or"),
    "states of two dtypes": ("exp_avg", lambda t: t.bfloat16(), "in one dtype"),
    "too few elements": ("exp_avg_sq", lambda t: t[:-1], "100 elements like weight, got 99"),
    "strides": ("gradient", lambda t: torch.randn(200)[::2], r"gradient to be a contiguous"),
    "another device": ("gradient", lambda t: t.to("meta"), "contiguous tensor on the CPU.*meta"),
    "no elements": ("weight", lambda t: t[:0], "weight to have elements, got none"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused_by_name(case):
    name, spoil, message = BAD_ARRAYS[case]
    a = arrays()
    a[name] = spoil(a[name])
    with pytest.raises(ValueError, match=f"adamw.*{message}"):
        _lab.adamw_(**a, **HYPER)


@pytest.mark.parametrize("second", ["gradient", "exp_avg", "exp_avg_sq"])
def test_arrays_that_overlap_are_refused_by_name(second):
    a = arrays()
    both = torch.randn(150)
    a["weight"], a[second] = both[:100], both[50:]
    before = both.clone()
    with pytest.raises(ValueError, match=f"got weight and {second}, which overlap"):
        _lab.adamw_(**a, **HYPER)
    assert both.equal(before)


def test_a_low_precision_output_over_the_weight_is_refused():
    a = arrays()
    low = a["weight"].view(torch.bfloat16)[:100]
    with pytest.raises(ValueError, match="weight and low_precision, which overlap"):
        _lab.adamw_(**a, low_precision=low, **HYPER)
    with pytest.raises(ValueError, match="low-precision output in bfloat16 or float16"):
        _lab.adamw_(**a, low_precision=torch.empty(100), **HYPER)


BAD_HYPER = [
    ("lr", math.nan, "finite lr, got nan"),
    ("betas", (1.0, 0.9), r"betas\[0\] of at least 0 and below 1, got 1"),
    ("betas", (0.9, math.nan), r"betas\[1\] of at least 0"),
    ("eps", -1.0, "eps of at least 0"),
    ("weight_decay", math.inf, "weight_decay of at least 0 and finite"),
    ("step", 0, "step of at least 1, got 0"),
    ("gradient_scale", math.inf, "finite gradient_scale"),
    ("decay", "bold", "expected decay decoupled, cautious or coupled"),
    ("kernels", "avx", "expected auto, reference"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_HYPER)
def test_hyper_parameters_out_of_range_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        _lab.adamw_(**arrays(), **{**HYPER, name: value})


def test_momentum_and_apply_refuse_what_adamw_refuses():
    x, y, z = torch.randn(9), torch.randn(9), torch.randn(9)
    for bad in ({"beta": 1.0}, {"beta": 0.9, "kind": "sum"}, {"beta": 0.9, "kernels": "fast"}):
        with pytest.raises(ValueError, match="momentum_: expected|momentum_kind: expected|cpu_kernels: expected"):
            _lab.momentum_(x, y, z, **bad)
    with pytest.raises(ValueError, match="momentum and wire, which overlap"):
        _lab.momentum_(x, y, y, beta=0.9)
    with pytest.raises(ValueError, match="the wire in float32 or bfloat16, got float16"):
        _lab.momentum_(x, y, z.half(), beta=0.9)
    for bad in ({"lr": math.inf}, {"scale": math.nan}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="apply_: expected"):
            _lab.apply_(x, y, **{"lr": 0.1, "weight_decay": 0.0, "scale": 1.0, **bad})
    with pytest.raises(ValueError, match="weight and update, which overlap"):
        _lab.apply_(x, x, lr=0.1, weight_decay=0.0, scale=1.0)
    with pytest.raises(ValueError, match="float32, got bfloat16 and float16"):
        _lab.cast_(x.bfloat16(), y.half())


@pytest.mark.skipif(bool(dict(_lab.cpu_kernels())["onednn"]), reason="this build has no oneDNN")
def test_onednn_refuses_bfloat16_and_cautious_decay_and_says_what_takes_them():
    a = arrays()
    with pytest.raises(ValueError, match='"onednn" has no cautious weight decay; use "auto"'):
        _lab.adamw_(**a, **HYPER, decay="cautious", kernels="onednn")
    a["gradient"] = a["gradient"].bfloat16()
    with pytest.raises(ValueError, match='"onednn" expects the gradient in float32.*use "auto"'):
        _lab.adamw_(**a, **HYPER, kernels="onednn")
