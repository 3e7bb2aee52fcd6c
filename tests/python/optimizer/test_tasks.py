"""The hyper-parameters of a step on their way from the table of options to the weights."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from zeromuon import _core

from tests.python.optimizer.other_options import OTHER
from zeromuon.optimizer.options import OPTIONS, validate_options
from zeromuon.optimizer.tasks import Request, make_task

ROLES = {"muon": _core.MuonTask, "adamw": _core.AdamWTask}
ROWS, COLS = 4, 6
# Keywords of the tasks that are no options: told of the gradient, of the sub-group, by "type": "Muon".
BESIDE_OPTIONS = {"muon": {"gradient_scale"}, "adamw": {"gradient_scale", "step", "decoupled"}}


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("role", ROLES)
def test_the_core_takes_the_hyper_parameters_that_the_table_names_and_no_others(role):
    keywords = re.findall(r"(\w+): ", ROLES[role].__init__.__doc__.partition("*, ")[2])
    assert set(keywords) - BESIDE_OPTIONS[role] == {option.name for option in OPTIONS if role in option.roles}


def after_a_step(group, role: str, **changes) -> list[torch.Tensor]:
    """Weights and states after one step of a sub-group that holds one matrix."""
    options = validate_options({"lr": 0.1, "weight_decay": 0.5, **changes})
    draw = torch.Generator().manual_seed(0)
    flat, flat.grad, exp_avg, exp_avg_sq = (torch.randn(ROWS * COLS, generator=draw) for _ in range(4))
    matrix = _core.ParamSpec(
        name="w",
        numel=ROWS * COLS,
        chunk=ROWS * COLS,
        shard_offset=0,
        rows=ROWS,
        cols=COLS,
        decay=True,
        transposed=False,
    )
    plan_options = _core.PlanOptions(
        world_size=1,
        newton_schulz=_core.NewtonSchulzRequest(
            form="standard", dtype="float32", coefficients=_core.CoefficientSet("jordan")
        ),
        target=_core.this_cpu(),
        lanes=1,
        scale="none",
        wire_dtype="float32",
        flow=_core.Flow(staged=False, momentum_home="shard", momentum_dtype="float32", casts="none"),
    )
    plan = _core.make_step_plan(plan_options, [_core.SubGroupSpec(role, [matrix])])
    cpu = torch.device("cpu")
    executor = _core.StepExecutor(plan, group, cpu, cpu, cpu_kernels="auto", stage_timeout_s=60)
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq**2}
    request = Request(SimpleNamespace(role=role, index=0, flat=flat))
    executor.step([make_task(request, state, options, {}, count=3, decoupled_decay=True)])
    return [flat, *state.values()]


@pytest.mark.parametrize("role, name", [(role, option.name) for option in OPTIONS for role in option.roles])
def test_every_hyper_parameter_changes_what_a_step_does(role, name, group):
    one, other = after_a_step(group, role), after_a_step(group, role, **{name: OTHER[name]})
    assert all(t.isfinite().all() for t in (*one, *other))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_decay_that_is_a_part_of_the_gradient_is_not_cautious():
    options = {**validate_options({}), "cautious_wd": True}
    request = Request(SimpleNamespace(role="adamw", index=0, flat=torch.ones(4)))
    request.sub_group.flat.grad = torch.ones(4)
    state = {"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    with pytest.raises(ValueError, match="cautious_wd: got True where the weight decay is coupled"):
        make_task(request, state, options, {}, count=1, decoupled_decay=False)
