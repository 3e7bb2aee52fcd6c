"""convert-optimizer against its formulas in torch, as real DeepSpeed loads the result, and one step on."""

import json

import pytest
import torch

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.kinds import ADAM_LR, BETAS, LR, MOMENTUM, SAVED_AFTER, WEIGHT_DECAY
from tests.python.ckpt.resumes import NUMBERS, RESUMES, ROLES
from tests.python.ckpt.tensors import assert_same, flat_states, settled

CONVERSIONS = [r.name for r in RESUMES.values() if " to " in r.name]
TO_OURS = [n for n in CONVERSIONS if n.startswith("AdamW")]
FROM_OURS_TO_ADAMW = ["ZeroMuon-fp32 to AdamW", "ZeroMuon-fp32 universal to AdamW", "Muon-fp32 to AdamW"]
OF_DEEPSPEEDS_MUON = ["Muon-fp32 to ZeroMuon", "Muon-bf16 to ZeroMuon"]


def before(name, saved) -> dict:
    return saved(2, RESUMES[name].source).tensors("live.pt")


def times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """In double, rounded once."""
    return (tensor.double() * factor).float()


@pytest.mark.parametrize("name", CONVERSIONS)
def test_weights_frozen_ones_and_buffers_stay_as_they_were(name, resumed, saved):
    found, expected = resumed(name).tensors("live.pt"), before(name, saved)
    for part in ("weights", "low", "kept"):
        assert_same(found[part], expected[part])


@pytest.mark.parametrize("name", CONVERSIONS)
def test_deepspeed_steps_on(name, resumed):
    found = resumed(name)
    now, after = found.tensors("live.pt"), found.tensors("next.pt")
    assert found.row["global_steps"] == SAVED_AFTER
    for parameter, weights in after["weights"].items():
        assert weights.isfinite().all()
        assert not torch.equal(weights, now["weights"][parameter]), parameter


@pytest.mark.parametrize("name", TO_OURS)
def test_adamw_to_ours_corrects_the_bias_of_the_first_moment(name, resumed, saved):
    """momentum = exp_avg / (1 - beta1^t), for the parameters that the roles name; the others keep both moments."""
    expected = {}
    for parameter, states in before(name, saved)["states"].items():
        if ROLES[parameter] == "muon":
            expected[f"{parameter}: exp_avg"] = times(states["exp_avg"], 1 / (1 - BETAS[0] ** SAVED_AFTER))
        else:
            expected.update({f"{parameter}: {part}": states[part] for part in ("exp_avg", "exp_avg_sq")})
    found = resumed(name)
    assert_same(flat_states(settled(found.tensors("live.pt"))), expected)
    assert set(found.tensors("live.pt")["steps"]) == {SAVED_AFTER}
    assert any("reset: the second moments of the Muon parameters" in note for note in found.report["notes"])


@pytest.mark.parametrize("name", FROM_OURS_TO_ADAMW)
def test_ours_to_adamw_keeps_the_momentum_and_resets_the_second_moment(name, resumed, saved):
    expected = {}
    for parameter, states in before(name, saved)["states"].items():
        momentum = states.get("exp_avg", states.get("momentum_buffer"))
        expected[f"{parameter}: exp_avg"] = momentum
        expected[f"{parameter}: exp_avg_sq"] = states.get("exp_avg_sq", torch.zeros_like(momentum))
    found = resumed(name)
    assert_same(flat_states(found.tensors("live.pt")), expected)
    assert set(found.tensors("live.pt")["steps"]) <= {0.0, float(SAVED_AFTER)}
    assert any("warm-up" in note for note in found.report["notes"])


def test_the_step_is_reset_in_sub_groups_with_a_muon_parameter(resumed):
    found = resumed("ZeroMuon-fp32 to AdamW")
    roles = {}
    for tensor in tool.inspect(str(found.output))["tensors"]:
        if tensor["sub_group"] is not None:
            roles.setdefault(tensor["sub_group"], set()).add(ROLES[tensor["name"]])
    expected = [0.0 if "muon" in roles[group] else float(SAVED_AFTER) for group in sorted(roles)]
    assert found.tensors("live.pt")["steps"] == expected


@pytest.mark.parametrize(
    "name, factor",
    [("ZeroMuon-fp32 to heavy_ball", 1 / (1 - MOMENTUM)), ("ZeroMuon-heavy-ball to ZeroMuon", 1 - MOMENTUM)],
)
def test_an_ema_and_a_heavy_ball_differ_by_one_minus_the_momentum(name, factor, resumed, saved):
    expected = {}
    for parameter, states in before(name, saved)["states"].items():
        muon = parameter in zoo.MUON
        expected.update(
            {f"{parameter}: {part}": times(tensor, factor) if muon else tensor for part, tensor in states.items()}
        )
    assert_same(flat_states(resumed(name).tensors("live.pt")), expected)


def test_to_heavy_ball_and_back_steps_as_if_it_had_not_been(resumed, saved):
    """Newton-Schulz does not see a factor: the next step differs by rounding only."""
    found, expected = (
        resumed("ZeroMuon-fp32 to heavy_ball").tensors("next.pt"),
        saved(2, "ZeroMuon-fp32").tensors("next.pt"),
    )
    for name, weights in expected["weights"].items():
        assert torch.allclose(found["weights"][name], weights, atol=2e-6), name


@pytest.mark.parametrize("name", OF_DEEPSPEEDS_MUON)
def test_deepspeeds_muon_becomes_ours_with_its_momentum_as_it_is(name, resumed, saved):
    """Its buffer is an EMA, m <- beta m + (1 - beta) g, by name: its Muon group is sorted by size."""
    expected = {}
    for parameter, states in before(name, saved)["states"].items():
        expected.update(
            {
                f"{parameter}: {'exp_avg' if part == 'momentum_buffer' else part}": tensor
                for part, tensor in states.items()
            }
        )
    assert_same(flat_states(resumed(name).tensors("live.pt")), expected)


def test_deepspeeds_muon_is_an_ema(saved):
    """What the conversion rests on, with the gradients that the zoo was fed."""
    momentum = saved(2, "Muon-fp32").tensors("live.pt")["states"]
    for name in zoo.MUON:
        expected = torch.zeros(momentum[name]["momentum_buffer"].shape)
        for step in range(SAVED_AFTER):
            expected.lerp_(zoo.gradient(name, tuple(expected.shape), step), 1 - MOMENTUM)
        assert torch.allclose(momentum[name]["momentum_buffer"], expected, atol=1e-6), name


@pytest.mark.parametrize(
    "name, rates",
    [
        ("AdamW-fp32 to ZeroMuon", [LR, ADAM_LR]),
        ("ZeroMuon-fp32 to AdamW", [ADAM_LR]),
        ("Muon-fp32 to ZeroMuon", [LR, ADAM_LR]),
        ("ZeroMuon-fp32 to heavy_ball", [LR, ADAM_LR]),
    ],
)
def test_the_notes_and_the_groups_say_the_learning_rates(name, rates, resumed):
    found = resumed(name)
    (note,) = [note for note in found.report["notes"] if note.startswith("learning rate:")]
    assert all(str(rate) in note for rate in rates), note
    assert [group["lr"] for group in found.row["groups"]] == rates
    assert found.row["groups"][0]["weight_decay"] == WEIGHT_DECAY


def test_the_learning_rate_of_a_momentum_of_another_kind_stays_as_it_is(output):
    _, report = output("ZeroMuon-fp32 to heavy_ball")
    assert "learning rate: lr 0.02, adam_lr 0.004, as they were: the update has no unit" in report["notes"]


def test_roles_are_asked_for_where_the_checkpoint_does_not_say_them(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    with pytest.raises(ValueError, match="does not say which parameters get Muon.*--roles FILE.*--model PATH"):
        tool.convert_optimizer(run, str(tmp_path / "out"), "ZeroMuon")
    with pytest.raises(ValueError, match='leave out 1 .the first is "gain"'):
        tool.convert_optimizer(
            run, str(tmp_path / "out"), "ZeroMuon", roles={n: r for n, r in ROLES.items() if n != "gain"}
        )
    with pytest.raises(ValueError, match='"gain" has 1 dimensions; Muon takes matrices'):
        tool.convert_optimizer(run, str(tmp_path / "out"), "ZeroMuon", roles={**ROLES, "gain": "muon"})
    with pytest.raises(ValueError, match='"gain" is "sgd", expected muon or adamw'):
        tool.convert_optimizer(run, str(tmp_path / "out"), "ZeroMuon", roles={**ROLES, "gain": "sgd"})
    assert not (tmp_path / "out").exists()


def test_roles_are_read_from_the_file_that_param_groups_writes(output, saved, tmp_path):
    import zeromuon

    path = tmp_path / "roles.json"
    zeromuon.param_groups(zoo.build()).save(path)
    roles = {entry["name"]: entry["role"] for entry in json.loads(path.read_text())["parameters"]}
    tool.convert_optimizer(saved(2, "AdamW-fp32").run, str(tmp_path / "out"), "ZeroMuon", roles=roles, numbers=NUMBERS)
    assert tool.diff(str(tmp_path / "out"), str(output("AdamW-fp32 to ZeroMuon")[0]))["same"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("AdamW-fp32", {"to": "AdamW"}, "is an AdamW checkpoint already"),
        ("ZeroMuon-fp32", {"to": "SGD"}, "expected ZeroMuon or AdamW"),
        ("ZeroMuon-fp32", {"to": "ZeroMuon", "momentum_kind": "polyak"}, "expected ema or heavy_ball"),
        ("ZeroMuon-fp32", {"to": "AdamW", "momentum_kind": "ema"}, "AdamW has none"),
        ("ZeroMuon-fp32", {"to": "ZeroMuon", "roles": {"first.weight": "adamw"}}, "its state fits no other role"),
        ("ZeroMuon-fp32", {"to": "ZeroMuon", "numbers": {"rate": 1.0}}, 'unknown name "rate"'),
    ],
)
def test_what_cannot_be_converted_is_said(name, options, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        tool.convert_optimizer(saved(2, name).run, str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
