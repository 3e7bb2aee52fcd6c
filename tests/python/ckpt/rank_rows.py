"""What ranks do: save checkpoints with real DeepSpeed, resume from folders that the tool wrote. Each returns a dict."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
import torch.distributed as dist

from tests.python.ckpt import zoo
from tests.python.ckpt.kinds import SAVED_AFTER, Kind, deepspeed_config
from tests.multirank import checkpoint_rows, world

STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def save(training: dict, folder: str, peers: bool) -> dict:
    """Trains and saves under `folder`/run; beside it the live model, before and after one more step. peers: also what
    DeepSpeed's own tools make of it."""
    engine = _engine(Kind(**training))
    _train(engine, range(SAVED_AFTER))
    engine.save_checkpoint(f"{folder}/run", tag="saved", client_state={"note": "from the client"})
    _write(live(engine), folder, "live.pt")
    _train(engine, range(SAVED_AFTER, SAVED_AFTER + 1))
    _write(live(engine), folder, "next.pt")
    row = {"sub_groups": len(engine.optimizer.fp32_partitioned_groups_flat)}
    if peers and dist.get_rank() == 0:
        row.update(_peers(Path(folder)))
    dist.barrier()
    return row


def resume(training: dict, run: str, tag: str, folder: str) -> dict:
    """Loads with optimizer states, and writes the live model before and after one more step to `folder`."""
    engine = _engine(Kind(**training))
    path, client = engine.load_checkpoint(run, tag=tag or None)
    assert path is not None, f"nothing was loaded from {run}"
    _write(live(engine), folder, "live.pt")
    steps, groups = engine.global_steps, _group_values(engine)
    _train(engine, range(SAVED_AFTER, SAVED_AFTER + 1))
    _write(live(engine), folder, "next.pt")
    plan = getattr(engine.optimizer.optimizer, "plan", None)  # of ours
    arithmetic = plan and plan.arithmetic_hash
    return {"global_steps": steps, "note": client.get("note"), "groups": groups, "arithmetic": arithmetic}


def consolidate(run: str, out: str) -> dict:
    """DeepSpeed's own consolidation of a folder, to the file `out`."""
    if dist.get_rank() == 0:
        _consolidate(run, out)
    dist.barrier()
    return {}


def save_on_nvme(training: dict, folder: str) -> dict:
    """Saves with the optimizer on NVMe, which needs DeepSpeed's aio; "missing" says why it cannot."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        return {"missing": "DeepSpeed's aio is not compatible with this machine: libaio is missing"}
    engine = _engine(Kind(**training))
    _train(engine, range(1))
    engine.save_checkpoint(f"{folder}/run", tag="saved")
    return {}


def save_dcp(folder: str) -> dict:
    """A folder of torch.distributed.checkpoint with a (7, 10) matrix sharded by rows, by columns, and not at all."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, whole = (
        init_device_mesh("cpu", (dist.get_world_size(),)),
        torch.arange(70, dtype=torch.float32).reshape(7, 10),
    )
    dcp.save(
        {
            "rows": distribute_tensor(whole, mesh, [Shard(0)]),
            "columns": distribute_tensor(whole, mesh, [Shard(1)]),
            "whole": whole,
        },
        checkpoint_id=folder,
    )
    return {}


NORM_BIAS = "norm.bias"  # 7 elements: 4 on rank 0; 3 and one of padding on rank 1


def save_changed(run: str, folder: str) -> dict:
    """Copies of a folder of two ranks, each with one change: nan-in-tensor, nan-in-padding, nvme (empty flat groups),
    earlier-save (a model file that counts one step less)."""
    if dist.get_rank() == 0:
        for name, change in (
            ("nan-in-tensor", lambda *a: _plant(2, *a)),
            ("nan-in-padding", lambda *a: _plant(3, *a)),
            ("nvme", _empty),
            ("earlier-save", _step_before),
        ):
            for path in Path(run).glob("*.pt"):
                content = torch.load(path, weights_only=False)
                change(
                    path.name,
                    content,
                    torch.load(Path(run) / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=False)[
                        "param_shapes"
                    ],
                )
                (Path(folder) / name).mkdir(parents=True, exist_ok=True)
                torch.save(content, Path(folder) / name / path.name)
    dist.barrier()
    return {}


def _plant(element: int, file: str, content: dict, shapes: list[dict]) -> None:
    """A NaN into that element of the last rank's chunk of NORM_BIAS, in its weights and its exp_avg."""
    if "rank_1_mp_rank_00_optim" not in file:
        return
    group = next(i for i, names in enumerate(shapes) if NORM_BIAS in names)
    before = list(shapes[group])[: list(shapes[group]).index(NORM_BIAS)]
    offset = sum(-(-shapes[group][name].numel() // 2) for name in before)
    zero = content["optimizer_state_dict"]
    for flat in (zero["fp32_flat_groups"][group], zero["optimizer_state_dict"]["state"][group]["exp_avg"]):
        flat.data[offset + element] = float("nan")


def _step_before(file: str, content: dict, shapes: list[dict]) -> None:
    if "rank_1_mp_rank_00_model" in file:
        content["global_steps"] -= 1


def _empty(file: str, content: dict, shapes: list[dict]) -> None:
    if "optim_states" in file:
        zero = content["optimizer_state_dict"]
        zero["fp32_flat_groups"] = [torch.empty(0) for _ in zero["fp32_flat_groups"]]
        zero["optimizer_state_dict"]["state"] = {}


# ---- engines -------------------------------------------------------------------------------------


def _engine(kind: Kind):
    model = zoo.build()
    engine = world.initialize(model, deepspeed_config(kind), list(model.parameters()))
    _fix_gradients(engine)
    return engine


def _fix_gradients(engine) -> None:
    """Whatever backward computes, every rank's gradient is that of the zoo."""
    engine.zoo_step = 0
    for name, param in engine.module.named_parameters():
        if param.requires_grad:
            param.register_hook(
                lambda grad, name=name, shape=tuple(param.ds_shape): zoo.gradient(name, shape, engine.zoo_step).to(
                    grad.dtype
                )
            )


def _train(engine, steps) -> None:
    for step in steps:
        engine.zoo_step = step
        engine.backward(engine(zoo.tokens()).float().square().mean())
        engine.step()


def live(engine) -> dict:
    """{"weights": name -> fp32, "states": name -> part -> fp32, "kept": frozen and buffers, "steps": of the sub-groups}"""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    import deepspeed

    zero3 = engine.optimizer
    out = {"weights": {}, "states": {}, "kept": {}, "low": {}}
    for name, param in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([param]):
            out["low" if param.requires_grad else "kept"][name] = param.detach().clone()
        if not param.requires_grad:
            continue
        out["weights"][name] = safe_get_full_fp32_param(param).float().clone()
        state = zero3.optimizer.state[_flat_of(zero3, param)]
        out["states"][name] = {
            part: safe_get_full_optimizer_state(param, part).float().clone() for part in STATES if part in state
        }
    out["kept"].update({name: buffer.clone() for name, buffer in engine.module.named_buffers() if name in zoo.BUFFERS})
    states = [zero3.optimizer.state[flat] for flat in zero3.fp32_partitioned_groups_flat]
    out["steps"] = [float(state["step"]) if "step" in state else None for state in states]
    return out


def _flat_of(zero3, param):
    group = next(i for i, params in enumerate(zero3.fp16_groups) if any(p is param for p in params))
    return zero3.fp32_partitioned_groups_flat[group]


def _group_values(engine) -> list:
    return [{k: g[k] for k in ("lr", "weight_decay") if k in g} for g in engine.optimizer.optimizer.param_groups]


def _write(tensors: dict, folder: str, name: str) -> None:
    if dist.get_rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(tensors, Path(folder) / name)
    dist.barrier()


# ---- DeepSpeed's own tools -------------------------------------------------------------------------


def _peers(folder: Path) -> dict:
    """zero_to_fp32 into zero_to_fp32.pt, ds_to_universal into peer-universal, or its error."""
    _consolidate(folder / "run", folder / "zero_to_fp32.pt")
    try:
        checkpoint_rows.to_universal(str(folder / "run/saved"), str(folder / "peer-universal"))
    except KeyError as error:
        return {"universal_error": f"KeyError: {error}"}
    return {}


def _consolidate(run, out) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        torch.save({k: v.clone() for k, v in get_fp32_state_dict_from_zero_checkpoint(str(run)).items()}, out)
