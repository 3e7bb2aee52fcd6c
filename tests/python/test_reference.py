"""The specification against the golden figures, and the core against the specification."""

import json
from pathlib import Path

import pytest
import torch

from zeromuon.reference import newton_schulz
from zeromuon import _core, _lab, reference

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "newton_schulz.json").read_text())
SETS = GOLDEN["sets"]


def effective(golden):
    """The triples that are iterated: each polynomial is evaluated at x/safety, but for an exact last one."""
    s = golden.get("safety", 1.0)
    triples = [(a / s, b / s**3, c / s**5) for a, b, c in golden["coefficients"]]
    return triples[:-1] + [tuple(golden["coefficients"][-1])] if golden.get("last_exact") else triples


def by_core(matrix, name, form, dtype, backend="auto"):
    request = _core.NewtonSchulzRequest(form=form, dtype=dtype, coefficients=_core.CoefficientSet(name))
    out = matrix.clone()
    _lab.NewtonSchulz(*matrix.shape, request, backend).run_([out])
    return out


def scalar_map(triples, sigma):
    for a, b, c in triples:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def test_every_golden_set_and_no_other_is_in_the_core():
    assert set(_core.coefficient_sets()) == {*SETS, "aol_4"}


@pytest.mark.parametrize("name", [*SETS, "aol_4"])
def test_the_core_carries_the_golden_coefficients(name):
    golden = SETS.get(name) or GOLDEN["aol_4"]
    core = _core.coefficient_set(name)
    for triple, expected in zip(core["coefficients"], effective(golden), strict=True):
        assert triple == pytest.approx(expected, rel=1e-15)
    assert core["safety"] == golden.get("safety", 1.0)
    assert core["scale_rows"] == (name == "aol_4")


@pytest.mark.parametrize("name", SETS)
def test_the_scalar_error_of_a_set_is_the_golden_one(name):
    core = _core.coefficient_set(name)
    for low, expected in SETS[name]["sup_error"].items():
        sigma = torch.logspace(torch.log10(torch.tensor(float(low))).item(), 0, 20001, dtype=torch.float64)
        error = (1 - scalar_map(core["coefficients"], sigma)).abs().max().item()
        assert error == pytest.approx(expected, abs=1e-4), f"on [{low}, 1]"


@pytest.mark.parametrize("name", [*SETS, "aol_4"])
@pytest.mark.parametrize(
    "form, shape",
    [
        ("standard", (256, 1024)),
        ("standard", (64, 64)),
        ("standard", (300, 100)),
        ("gram", (256, 1024)),
        ("gram", (300, 100)),
        ("gram", (64, 96)),
        ("gram_restarts", (256, 1024)),
        ("gram_restarts", (300, 100)),
    ],
)
def test_the_core_matches_the_reference_in_double(name, form, shape):
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    core = _core.coefficient_set(name)
    exact = newton_schulz(u.double(), core["coefficients"], core["safety"], core["scale_rows"], form.partition("_")[0])
    assert (by_core(u, name, form, "float32") - exact).norm() <= 5e-4 * exact.norm()


@pytest.mark.parametrize(
    "name, mean, low, high",
    [
        ("jordan", 0.1315, 0.682, 1.134),
        ("you", 0.0146, 0.978, 1.032),
        ("polar_express", 0.0776, 0.871, 1.124),
        ("cans", 0.0711, 0.886, 1.119),
        ("cubic", 0.1709, 0.774, 1.300),
        ("deepseek_v4", 0.0002, 1.000, 1.0005),
        ("aol_4", 0.0061, 0.987, 1.012),
    ],
)
def test_singular_values_of_a_gaussian_matrix_come_out_near_one(name, mean, low, high):
    u = torch.randn((256, 1024), generator=torch.Generator().manual_seed(0))
    core = _core.coefficient_set(name)
    reference = newton_schulz(u, core["coefficients"], core["safety"], core["scale_rows"])
    for result in (reference, by_core(u, name, "standard", "float32"), by_core(u, name, "gram", "float32")):
        s = torch.linalg.svdvals(result)
        assert (s - 1).abs().mean().item() == pytest.approx(mean, rel=0.02, abs=5e-5)
        assert (s.min().item(), s.max().item()) == pytest.approx((low, high), abs=0.002)


@pytest.mark.parametrize("backend", ["auto", "libtorch"])
@pytest.mark.parametrize("form", ["standard", "gram", "gram_restarts"])
@pytest.mark.parametrize("decades", [0, 3, 5])
def test_bfloat16_products_raise_no_singular_value_far(form, decades, backend):
    if backend == "auto" and not _core.this_cpu().name.startswith(("avx512_bf16+", "amx_bf16+")):
        pytest.skip(f"bfloat16 products need AVX512_BF16 or AMX and oneDNN; this is {_core.this_cpu().name}")
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(512, 128, generator=generator))[0]
    u = (left * torch.logspace(0, -decades, 128)) @ right.T if decades else torch.randn(128, 512, generator=generator)
    exact = newton_schulz(u.double(), SETS["jordan"]["coefficients"])
    got = by_core(u, "jordan", form, "bfloat16", backend)
    assert torch.linalg.svdvals(got).max().item() == pytest.approx(torch.linalg.svdvals(exact).max().item(), abs=0.05)
    assert (got - exact).norm() <= 0.13 * exact.norm()


def test_two_forms_of_the_reference_agree():
    u = torch.randn(20, 70, dtype=torch.float64)
    jordan = SETS["jordan"]["coefficients"]
    assert torch.allclose(newton_schulz(u, jordan), newton_schulz(u, jordan, form="gram"), atol=1e-10)


def test_the_reference_stays_a_page():
    lines = Path(reference.__file__).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 72
