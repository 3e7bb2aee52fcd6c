"""Rows about checkpoints: save, load and go on, other formats, other optimizers' states. Each returns a dict."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from zeromuon.commands.compare import kit

from tests.multirank import models, parity, world
from tests.multirank.cases import STEPS, Case, deepspeed_config
from tests.multirank.rows import OFFLOAD, PLAIN, error_of

SAVED_AFTER = 3  # steps


def _folder(name: str) -> Path:
    folder = Path(world.on_all_ranks(str(Path.cwd()))[0]) / name
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    return folder


# ---- the same world size -------------------------------------------------------------------------


def save_load_go_on(offload: bool, dtype: str = "fp32", model: str = "small", **options) -> dict:
    options = {"weight_decay": 0.1, **options}
    case = Case("checkpoint", model=model, sub_group=150, offload=offload, clip=0.05, dtype=dtype, options=options)
    row, engine, resumed = _resumed(case, case, f"checkpoint-{offload}-{dtype}-{len(options)}")
    saved = torch.load(next(row["folder"].rglob("*rank_0_mp_rank_00_optim_states.pt")), weights_only=False)
    packed = saved["optimizer_state_dict"]["optimizer_state_dict"]
    return {
        "same": row["same"],
        "states": [sorted(s) for s in resumed.optimizer.optimizer.state.values()],
        "saved_states": [sorted(s) for s in packed["state"].values()],
        "entry": packed["zeromuon"],
        "arithmetic": resumed.optimizer.optimizer.plan.arithmetic_hash,
        "momentum_dtypes": _momentum_dtypes(resumed),
        "placeholder_numel": packed["state"][0]["exp_avg_sq"].untyped_storage().nbytes() // 4,
    }


def _momentum_dtypes(engine) -> list[str]:
    optimizer = engine.optimizer.optimizer
    muon = [g.flat for g in optimizer._binding.sub_groups if g.role == "muon"]
    return sorted({str(optimizer.state[flat]["exp_avg"].dtype) for flat in muon})


def module_only() -> dict:
    """Whether load_module_only, alone and with load_optimizer_states, brings back the weights of a checkpoint."""
    loaded = {}
    for how, options in (("alone", {}), ("told", {"load_optimizer_states": False})):
        case = Case("module only", sub_group=150)
        model, engine = world.build_engine(case)
        saved = world.whole_weights(model)
        folder = str(_folder("module_only"))
        engine.save_checkpoint(folder)
        world.train(engine, models.batches(case, dist.get_world_size()), range(1))
        engine.load_checkpoint(folder, load_module_only=True, **options)
        weights = world.whole_weights(model)
        loaded[how] = all(torch.equal(weights[name], saved[name]) for name in saved)
    return loaded


def other_momentum_dtype(saved: str, loaded: str) -> dict:
    """Saved with one data type of the momentum, loaded by a run with another: the momenta then, and what is said."""

    def case(dtype: str) -> Case:
        return Case("momentum dtype", sub_group=150, offload=True, options={"momentum_dtype": dtype})

    data = models.batches(case(saved), dist.get_world_size())
    _, engine = world.build_engine(case(saved))
    world.train(engine, data, range(SAVED_AFTER))
    folder = _folder(f"momentum-{saved}")
    engine.save_checkpoint(str(folder))
    expected = parity.momenta(engine.module)
    _, resumed = world.build_engine(case(loaded))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.load_checkpoint(str(folder))
    found = parity.momenta(resumed.module)
    # The states of AdamW's parameters stay fp32.
    is_muon = {n: models.MODELS["small"].role(n, tuple(m.shape)) == "muon" for n, m in expected.items()}
    rounded = {n: m.to(getattr(torch, loaded)).float() if is_muon[n] else m for n, m in expected.items()}
    said = [str(w.message) for w in caught if str(w.message).startswith("momentum_dtype")]
    world.train(resumed, data, range(SAVED_AFTER, STEPS))
    return {
        "same": all(torch.equal(found[n], rounded[n]) for n in rounded),
        "warnings": said,
        "momentum_dtypes": _momentum_dtypes(resumed),
        "steps": resumed.optimizer.optimizer.counters()["steps"],
    }


def zero_init_on_one_side(saving: bool) -> dict:
    """Saves with zero.Init and loads without, or the other way round; groups of the user's own, one with a decay."""

    def case(zero_init: bool) -> Case:
        return Case(
            "sides", sub_group=150, zero_init=zero_init, route="tags", group_decay=0.3, options={"weight_decay": 0.1}
        )

    row, _, resumed = _resumed(case(saving), case(not saving), f"sides-{saving}")
    return {"same": row["same"], "groups": _group_values(resumed)}


def _resumed(saving: Case, loading: Case, name: str):
    """Trains, saves, goes on; loads into a new engine and goes on: whether both ended alike, and both engines."""
    data = models.batches(saving, dist.get_world_size())
    _, engine = world.build_engine(saving)
    world.train(engine, data, range(SAVED_AFTER))
    folder = _folder(name)
    engine.save_checkpoint(str(folder))
    world.train(engine, data, range(SAVED_AFTER, STEPS))
    _, resumed = world.build_engine(loading)
    resumed.load_checkpoint(str(folder))
    world.train(resumed, data, range(SAVED_AFTER, STEPS))
    same = world.same_bits(_everything(engine), _everything(resumed))
    return {"same": world.on_all_ranks(same), "folder": folder}, engine, resumed


def _everything(engine) -> list[torch.Tensor]:
    """Whole master weights and momenta by name: padding, whose content is arbitrary, is left out."""
    named = [*world.whole_weights(engine.module).items(), *parity.momenta(engine.module).items()]
    return [tensor for _, tensor in sorted(named, key=lambda item: item[0])]


def _group_values(engine) -> list:
    return [[g["lr"], g["weight_decay"]] for g in engine.optimizer.optimizer.param_groups]


# ---- other matrices in a parameter ---------------------------------------------------------------

WHOLE = {"sub_group": 150, "clip": 0.05}  # of a checkpoint that an earlier version wrote


def save_with_next(model: str, folder: str) -> dict:
    """A checkpoint, and beside it next.pt: its exp_avg, and the weights one step later."""
    case = Case("whole", model=model, **WHOLE)
    data = models.batches(case, dist.get_world_size())
    _, engine = world.build_engine(case)
    world.train(engine, data, range(SAVED_AFTER))
    engine.save_checkpoint(folder, tag="saved")
    after = {"exp_avg": parity.momenta(engine.module)}
    world.train(engine, data, range(SAVED_AFTER, SAVED_AFTER + 1))
    after["weights"] = world.whole_weights(engine.module)
    if dist.get_rank() == 0:
        torch.save(after, Path(folder) / "next.pt")
        for script in Path(folder).glob("zero_to_*.py"):
            script.unlink()
    return {}


def load_with_next(model: str, folder: str, **selection) -> dict:
    """What loading says, and how far the weights are from next.pt after one step more."""
    case = Case("whole", model=model, options=selection, **WHOLE)
    _, engine = world.build_engine(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors = world.on_all_ranks(error_of(lambda: engine.load_checkpoint(folder)))
    row = {"errors": errors, "warnings": [str(w.message) for w in caught if "matrices" in str(w.message)]}
    if any(errors):
        return row
    expected, momenta = torch.load(Path(folder) / "next.pt"), parity.momenta(engine.module)
    # What one has to be multiplied with to be the other.
    ratios = {n: _ratio(momenta[n], expected["exp_avg"][n]) for n in momenta}
    world.train(engine, models.batches(case, dist.get_world_size()), range(SAVED_AFTER, SAVED_AFTER + 1))
    distance = kit.distance(world.whole_weights(engine.module), expected["weights"])
    return {**row, "ratios": ratios, "distance": distance}


def _ratio(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """The least and the greatest of a/b, where b is not zero."""
    ratio = (a / b)[b != 0]
    return [ratio.min().item(), ratio.max().item()]


# ---- what DeepSpeed's tools read -----------------------------------------------------------------


def zero_to_fp32(dtype: str) -> dict:
    """DeepSpeed's own consolidation of a checkpoint against the live master weights."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    case = Case("consolidate", sub_group=150, dtype=dtype, offload=True)
    model, engine = world.build_engine(case)
    world.train(engine, models.batches(case, dist.get_world_size()), range(2))
    folder, live = _folder(f"consolidate-{dtype}"), world.whole_weights(model)
    engine.save_checkpoint(str(folder))
    dist.barrier()
    if dist.get_rank() != 0:
        return {}
    found = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    return {"missing": sorted(live.keys() ^ found.keys()), "same": all(torch.equal(live[n], found[n]) for n in live)}


def states_by_name() -> dict:
    """DeepSpeed's accessors of whole states, for a Muon and an AdamW parameter."""
    from deepspeed.utils import safe_get_full_optimizer_state

    model, engine = world.build_engine(PLAIN)
    world.train(engine, models.batches(PLAIN, dist.get_world_size()), range(2))
    params = dict(model.named_parameters())
    shapes = {
        f"{name} {key}": list(safe_get_full_optimizer_state(params[name], key).shape)
        for name, key in (("0.weight", "exp_avg"), ("0.bias", "exp_avg"), ("0.bias", "exp_avg_sq"))
    }
    error = error_of(lambda: safe_get_full_optimizer_state(params["0.weight"], "exp_avg_sq"))
    return {"shapes": shapes, "errors": world.on_all_ranks(error)}


# ---- another world size, through DeepSpeed's universal format --------------------------------------

_UNIVERSAL = Case(
    "universal", sub_group=150, offload=True, route="tags", group_decay=0.3, clip=0.05, options={"weight_decay": 0.1}
)


def _equal_batches(case: Case):
    """Every rank gets the same batch, so that the mean gradient is the same for any number of ranks."""
    return [[[ranks[0]] * dist.get_world_size() for ranks in step] for step in models.batches(case, 1)]


def _universal_case(**changes) -> Case:
    return Case(**{**_UNIVERSAL.as_dict(), "frozen": (), **changes})


def save_for_universal(folder: str, optimizer: str, options: dict) -> dict:
    """Saves after three steps of ours or of an AdamW, as a universal checkpoint, too; what ours holds after two more goes
    to a file beside it. options: of ours."""
    case = _universal_case(options={**_UNIVERSAL.options, **options})
    if optimizer == "AdamW":
        case = Case("adamw", sub_group=150, offload=True)
    config = deepspeed_config(case)
    if optimizer == "AdamW":
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    _, engine = world.build_engine(case, config=config)
    data = _equal_batches(case)
    world.train(engine, data, range(SAVED_AFTER))
    engine.save_checkpoint(folder, tag="saved")
    if optimizer == "ZeroMuon":
        world.train(engine, data, range(SAVED_AFTER, STEPS))
        expected = _everything(engine)
        if dist.get_rank() == 0:
            torch.save(expected, Path(folder) / "expected.pt")
    if dist.get_rank() == 0:
        to_universal(f"{folder}/saved", f"{folder}/universal")
    dist.barrier()
    return {"groups": _group_values(engine)}


def to_universal(source: str, output: str) -> None:
    """DeepSpeed's own conversion, as its command does it."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=source,
        output_folder=output,
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(options)


def load_universal(folder: str, zero_init: bool, options: dict) -> dict:
    case = _universal_case(zero_init=zero_init, options={**_UNIVERSAL.options, **options})
    _, engine = world.build_engine(case, config=_universal_config(case))
    engine.load_checkpoint(folder, tag="universal")
    world.train(engine, _equal_batches(case), range(SAVED_AFTER, STEPS))
    expected = torch.load(Path(folder) / "expected.pt")
    found = _everything(engine)
    optimizer = engine.optimizer.optimizer
    return {
        "error": max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)),
        "groups": _group_values(engine),
        "states": sorted({tuple(sorted(s)) for s in optimizer.state.values()}),
        "momentum_dtypes": _momentum_dtypes(engine),
        "left_over": [k for g in optimizer.param_groups for k in g if k == "zeromuon"],
    }


def load_foreign_universal(folder: str) -> dict:
    _, engine = world.build_engine(OFFLOAD, config=_universal_config(OFFLOAD))
    error = error_of(lambda: engine.load_checkpoint(folder, tag="universal"))
    before = world.shards_of(engine)
    data = models.batches(OFFLOAD, dist.get_world_size())
    assert error == error_of(lambda: world.train(engine, data, range(1))), "a step says it again"
    unchanged = world.same_bits(before, world.shards_of(engine))
    return {"errors": world.on_all_ranks(error), "unchanged": world.on_all_ranks(unchanged)}


def _universal_config(case: Case) -> dict:
    return {**deepspeed_config(case), "checkpoint": {"load_universal": True}}


# ---- states of other optimizers ------------------------------------------------------------------


def foreign_states() -> dict:
    """State dicts that do not fit, given to load_state_dict one after the other."""
    _, engine = world.build_engine(PLAIN)
    world.train(engine, models.batches(PLAIN, dist.get_world_size()), range(1))
    zero3 = engine.optimizer
    zero3._set_fp32_optimizer_param_groups()
    good = zero3.optimizer.state_dict()
    adamw = {k: v for k, v in good.items() if k != "zeromuon"}
    other_role = {**good, "zeromuon": {**good["zeromuon"], "roles": {**good["zeromuon"]["roles"], "0.weight": "adamw"}}}
    other_kind = {
        **good,
        "zeromuon": {**good["zeromuon"], "options": {**good["zeromuon"]["options"], "momentum_kind": "heavy_ball"}},
    }
    before = world.shards_of(engine)
    swapped = list(good["zeromuon"]["roles"].items())
    swapped[0], swapped[1] = swapped[1], swapped[0]
    other_order = {**good, "zeromuon": {**good["zeromuon"], "roles": dict(swapped)}}
    later_need = {**good, "zeromuon": {**good["zeromuon"], "needs": ["heads"]}}
    later_field = {**good, "zeromuon": {**good["zeromuon"], "later": 1}}
    errors = []
    for state_dict in (adamw, other_role, other_kind, other_order, later_need, later_field, good):
        zero3._clear_fp32_optimizer_param_groups()
        zero3._set_fp32_optimizer_param_groups()
        errors.append(error_of(lambda s=state_dict: zero3.optimizer.load_state_dict(s)))
    zero3._clear_fp32_optimizer_param_groups()
    return {"errors": errors, "unchanged": world.same_bits(before, world.shards_of(engine))}


def foreign_checkpoint(optimizer: str) -> dict:
    """A checkpoint that DeepSpeed wrote with AdamW or its own Muon, loaded by ours."""
    params = {"lr": 1e-3, "torch_adam": True}
    config = {**deepspeed_config(PLAIN), "optimizer": {"type": optimizer, "params": params}}
    config["zero_optimization"]["reduce_scatter"] = False
    _, engine = world.build_engine(PLAIN, config=config)
    data = models.batches(PLAIN, dist.get_world_size())
    world.train(engine, data, range(2))
    folder = _folder(f"foreign-{optimizer}")
    engine.save_checkpoint(str(folder))
    _, ours = world.build_engine(PLAIN)
    world.train(ours, data, range(1))
    before = world.shards_of(ours)
    error = error_of(lambda: ours.load_checkpoint(str(folder)))
    unchanged = world.same_bits(before, world.shards_of(ours))
    world.train(ours, data, range(1, 2))
    steps = [s["step"] for s in ours.optimizer.optimizer.state.values()]
    weights_only = error_of(lambda: ours.load_checkpoint(str(folder), load_optimizer_states=False))
    return {
        "errors": world.on_all_ranks(error),
        "unchanged": world.on_all_ranks(unchanged),
        "steps": steps,
        "weights_only": weights_only,
    }


def poisoned_then_loaded() -> dict:
    """A step that breaks: the checkpoint before it stays the latest, and loading it goes on as if nothing happened."""
    case = Case("poisoned", sub_group=150, offload=True)
    data = models.batches(case, dist.get_world_size())
    _, engine = world.build_engine(case)
    world.train(engine, data, range(2))
    folder = _folder("poisoned")
    engine.save_checkpoint(str(folder), tag="good")
    world.train(engine, data, range(2, 3))
    expected = _everything(engine)
    zero3 = engine.optimizer
    if dist.get_rank() == dist.get_world_size() - 1:
        zero3.optimizer.state[zero3.fp32_partitioned_groups_flat[0]]["exp_avg"][0] = float("inf")
    broken = error_of(lambda: world.train(engine, data, range(3, 4)))
    saving = error_of(lambda: engine.save_checkpoint(str(folder), tag="bad"))
    dist.barrier()
    latest = (folder / "latest").read_text()
    engine.load_checkpoint(str(folder))
    world.train(engine, data, range(2, 3))
    return {
        "errors": world.on_all_ranks(broken),
        "saving": world.on_all_ranks(saving),
        "latest": latest,
        "same": world.on_all_ranks(world.same_bits(_everything(engine), expected)),
    }


def other_rates_on_load() -> dict:
    """Saved with one lr and adam_lr, loaded by a run that says others: what AdamW is stepped with then."""
    case = Case("rates", sub_group=150)
    data = models.batches(case, dist.get_world_size())
    _, engine = world.build_engine(case)
    world.train(engine, data, range(SAVED_AFTER))
    folder = _folder("rates")
    engine.save_checkpoint(str(folder))
    world.train(engine, data, range(SAVED_AFTER, STEPS))
    other = Case("rates", sub_group=150, options={"lr": 0.005, "adam_lr": 0.002})
    _, resumed = world.build_engine(other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.load_checkpoint(str(folder))
    world.train(resumed, data, range(SAVED_AFTER, STEPS))
    return {
        "same": world.on_all_ranks(world.same_bits(_everything(engine), _everything(resumed))),
        "warnings": [str(w.message) for w in caught if "the checkpoint was written with" in str(w.message)],
    }
