"""ZeroMuon before it is bound: construction and its errors. The rest needs real ZeRO-3: tests/multirank."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import zeromuon


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def test_bare_parameters_are_refused_and_param_groups_is_named():
    with pytest.raises(ValueError, match=r"param_groups\(model\)"):
        zeromuon.ZeroMuon(model().parameters())


def test_groups_without_roles_are_refused_and_say_which_parameter():
    with pytest.raises(ValueError, match=r"6 parameters without a role .*number 0"):
        zeromuon.ZeroMuon([{"params": list(model().parameters())}])


def test_no_eligible_parameter_is_an_error():
    norm = nn.LayerNorm(4)
    for p in norm.parameters():
        p.use_muon = False
    with pytest.raises(ValueError, match="none of the 2 parameters is eligible"):
        zeromuon.ZeroMuon([{"params": list(norm.parameters())}])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"momentun": 0.9}, '"?momentum"?'),
        ({"lr": -1e-3}, "lr"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"momentum": 1.0}, "momentum"),
        ({"ns": "jordon"}, "jordan"),
        ({"ns_form": "grams"}, "gram"),
        ({"ns_dtype": "half"}, '"auto", "float32", "bfloat16" or "float16"'),
        ({"cautious_wd": True, "cpu_kernels": "onednn"}, "cautious_wd"),
        ({"cpu_kernels": "sse"}, "avx2"),
        ({"momentum_device": "gpu"}, "cpu_streamed"),
        ({"fused_step": True}, "fused_step"),
        ({"lr": 0.0, "adam_lr": 1e-3}, "adam_lr"),
        ({"ns": [[1.0, float("nan"), 0.0]]}, "finite"),
    ],
)
def test_bad_options_are_refused_at_construction(options, expected, capsys):
    with pytest.raises(ValueError, match=expected):
        zeromuon.ZeroMuon(zeromuon.param_groups(model()), **options)


def test_a_step_outside_zero3_is_refused_and_changes_nothing(capsys):
    net = model()
    optimizer = zeromuon.ZeroMuon(zeromuon.param_groups(net))
    net(torch.randn(2, 8)).sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="ZeRO stage 3 only"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_groups_are_split_by_role_and_keep_their_own_values():
    net = model()
    for p in net.parameters():
        p.use_muon = p.dim() == 2
    optimizer = zeromuon.ZeroMuon(
        [{"params": list(net[0].parameters()), "lr": 0.5}, {"params": list(net[2].parameters()), "weight_decay": 0.3}],
        lr=0.1,
        weight_decay=0.2,
    )
    found = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [(1, 0.5, 0.2), (1, 0.5, 0.2), (1, 0.1, 0.3), (1, 0.1, 0.3)]
    decays = [optimizer._specs[id(p)].decay for p in (net[0].bias, net[2].bias, net[2].weight)]
    assert decays == [False, True, True], "a group with its own weight_decay decays as told"


def test_a_key_of_a_group_that_would_be_dropped_is_an_error():
    net = model()
    for p in net.parameters():
        p.use_muon = p.dim() == 2
    with pytest.raises(ValueError, match="group 0: unknown key 'momentun'.*did you mean 'momentum'"):
        zeromuon.ZeroMuon([{"params": list(net.parameters()), "momentun": 0.9}])
    with pytest.raises(ValueError, match="group 0: momentum: got 1.5"):
        zeromuon.ZeroMuon([{"params": list(net.parameters()), "momentum": 1.5}])


def test_every_group_says_what_its_role_is_stepped_with():
    net = model()
    for p in net.parameters():
        p.use_muon = p.dim() == 2
    told = [
        {"params": list(net[0].parameters()), "lr": 0.5, "momentum": 0.8, "betas": [0.7, 0.8]},
        {"params": list(net[2].parameters())},
    ]
    optimizer = zeromuon.ZeroMuon(told, lr=0.2, adam_lr=0.1, eps=1e-6)
    found = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert found == [
        {"lr": 0.5, "weight_decay": 0.0, "momentum": 0.8, "nesterov": True},
        {"lr": 0.25, "weight_decay": 0.0, "betas": (0.7, 0.8), "eps": 1e-6},
        {"lr": 0.2, "weight_decay": 0.0, "momentum": 0.95, "nesterov": True},
        {"lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-6},
    ]
    assert optimizer.lr_factors == [1.0, 0.5, 1.0, 0.5]


def test_importing_changes_nothing_and_loads_nothing_heavy():
    code = "import sys, zeromuon; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_refuses_what_it_cannot_orthogonalise():
    from zeromuon import _core, _lab

    request = _core.NewtonSchulzRequest(form="auto", dtype="auto", coefficients=_core.CoefficientSet("jordan"))
    operation = _lab.NewtonSchulz(2, 2, request)
    for bad in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.float64), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="contiguous float32 CPU tensors"):
            operation.run_([bad])
    with pytest.raises(ValueError):
        _lab.NewtonSchulz(0, 3, request)
    with pytest.raises(ValueError, match="blas or libtorch"):
        _lab.NewtonSchulz(2, 2, request, backend="numpy")
