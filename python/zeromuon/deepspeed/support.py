"""Which DeepSpeed and which of its configurations are supported: what is refused, with the reason and what instead.

Every attribute of DeepSpeed's ZeRO-3 optimizer that the package relies on is named here or in loop.py, and checked
before use, so that a release that moved one ends in an error that names it instead of in wrong numbers.
"""

from __future__ import annotations

import torch

from ..base.warn import warn
from ..base.words import did_you_mean
from .hooks import check_signature, replace_once
from .layout import process_group
from .release import other_release

# Methods of the ZeRO-3 object that are replaced -> their parameters. loop.py has those of the fused step.
REPLACED_METHODS = {
    "_overflow_clean_up": ["self", "prev_scale"],
    "_update_scale": ["self", "has_overflow"],
    "_post_step": ["self", "timer_names"],
    "_pre_step": ["self"],
    "partition_grads": ["self", "params_to_release", "grad_partitions"],
    "offload_states": ["self", "include", "device", "pin_memory", "non_blocking"],
}
_STEP = {"step": ["self", "closure"]}  # the same, of a method that everybody may name
_OPTIMIZER_SECTION = ("type", "params", "legacy_fusion")  # of the config
REQUIRED_ATTRIBUTES = (
    *REPLACED_METHODS,
    "optimizer",
    "fp16_groups",
    "fp32_partitioned_groups_flat",
    "grad_position",
    "param_names",
    "sub_group_to_group_id",
    "dp_process_group",
    "offload_optimizer",
    "partial_offload",
    "swap_optimizer",
    "get_param_id",
    "micro_step_id",
    "dtype",
)


def check_methods(zero3) -> None:
    """Raises ValueError when a method that is replaced is absent or takes other parameters."""
    for name, signature in {**REPLACED_METHODS, **_STEP}.items():
        check_signature(zero3, name, signature)


def replace_method(zero3, name: str, replacement) -> None:
    """replace_once for one of the methods that are."""
    replace_once(zero3, name, {**REPLACED_METHODS, **_STEP}[name], replacement)


def is_zero3(optimizer) -> bool:
    """Whether this is a ZeRO-3 optimizer with all that the binding relies on."""
    return all(hasattr(optimizer, name) for name in REQUIRED_ATTRIBUTES)


def check_supported(zero3, optimizer) -> None:
    """Raises ValueError for an unknown DeepSpeed, a configuration that is not supported, or an engine that
    steps another optimizer than `optimizer`."""
    missing = [name for name in REQUIRED_ATTRIBUTES if not hasattr(zero3, name)]
    if missing:
        raise other_release(
            f"its ZeRO-3 optimizer ({type(zero3).__name__}) has no attribute {', '.join(missing)}, which zeromuon needs"
        )
    _refuse_zero3(zero3)
    check_methods(zero3)
    if zero3.optimizer is not optimizer:
        raise ValueError(
            f"this ZeroMuon is not the optimizer of the engine: DeepSpeed steps a "
            f"{type(zero3.optimizer).__name__}; with offload and an optimizer object set "
            f"zero_force_ds_cpu_optimizer to false, or name ZeroMuon in the JSON config"
        )


def check_config(engine) -> None:
    """Raises ValueError for a DeepSpeed configuration that is not supported, before the engine builds on it. Rank 0 warns of
    keys of the optimizer section that DeepSpeed passes over."""
    if engine.global_rank == 0:
        _warn_of_unread_keys(getattr(engine._config, "_param_dict", {}).get("optimizer") or {})
    stage = int(engine.zero_optimization_stage())
    if stage != 3:
        raise ValueError(
            f"ZeroMuon needs zero_optimization.stage 3, the config says {stage}; for stages 0 to 2 use a Muon made for "
            f"whole parameters, such as torch.optim.Muon or DeepSpeed's own"
        )
    zero, offload = engine._config.zero_config, engine._config.zero_config.offload_optimizer
    expert = getattr(engine._config, "expert_parallel_config", None)
    _refuse(
        ratio=1.0 if offload is None else offload.ratio,
        super_offload=getattr(offload, "super_offload", False),
        zenflow=getattr(zero, "zenflow", None) is not None,
        nvme=offload is not None and str(getattr(offload.device, "value", offload.device)) == "nvme",
        mics=getattr(zero, "mics_shard_size", -1) > 0,
        hpz=getattr(zero, "zero_hpz_partition_size", 1) > 1,
        tensor_parallel=hasattr(engine, "autotp_size") and engine.autotp_size() > 1,
        expert_parallel=getattr(expert, "enabled", False),
    )


def _warn_of_unread_keys(section: dict) -> None:
    for key in section:
        if key not in _OPTIMIZER_SECTION:
            hint = did_you_mean(key, _OPTIMIZER_SECTION, f"; its keys are {', '.join(_OPTIMIZER_SECTION)}")
            warn(f'the optimizer section of the DeepSpeed config has a key "{key}", which nobody reads{hint}')


def _refuse_zero3(zero3) -> None:
    """The same of what was built."""
    tensor_parallel = getattr(zero3, "model_parallel_group", None)
    groups = getattr(zero3, "sub_group_process_groups", [])
    _refuse(
        ratio=zero3.partial_offload if zero3.offload_optimizer else 1.0,
        super_offload="SuperOffload" in type(zero3).__name__,
        zenflow=getattr(zero3, "zenflow", False),
        nvme=zero3.swap_optimizer,
        mics=type(zero3).__name__.startswith("MiCS"),
        hpz=getattr(zero3, "zero_hpz_partition_size", 1) > 1,
        tensor_parallel=tensor_parallel is not None and torch.distributed.get_world_size(tensor_parallel) > 1,
        expert_parallel=any(group is not process_group(zero3) for group in groups),
    )


# What is not supported -> why not and what instead.
_REFUSED = {
    "super_offload": "SuperOffload steps its own CPU Adam and is not supported; remove super_offload",
    "zenflow": "ZenFlow steps its own Adam and is not supported; remove zenflow",
    "nvme": "offload_optimizer.device nvme is not supported: DeepSpeed swaps the states out between sub-groups; use cpu "
    "or none",
    "partial_offload": "offload_optimizer.ratio is {ratio}; with another value than 1.0 DeepSpeed steps a part of the "
    "model with its own Adam; set it to 1.0",
    "mics": "MiCS shards over a part of the ranks and is not supported; remove mics_shard_size",
    "hpz": "zero_hpz_partition_size above 1 (hpZ of ZeRO++) is not supported: it keeps a second set of shards that was "
    "not shown to stay equal; set it to 1",
    "tensor_parallel": "tensor parallelism (AutoTP or an mpu) is not supported: a rank would hold a part of each matrix; "
    "set tensor_parallel.autotp_size to 1",
    "expert_parallel": "expert parallelism (AutoEP) partitions sub-groups over different process groups and is not "
    "supported; turn expert_parallel off, or set its size to 1",
}


def _refuse(ratio: float, **found: bool) -> None:
    """Raises ValueError for the first of _REFUSED that was found. ratio: of the states that are offloaded."""
    found["partial_offload"] = ratio != 1.0
    for what, message in _REFUSED.items():
        if found[what]:
            raise ValueError("ZeroMuon: " + message.format(ratio=ratio))


def refuse_offload_states(zero3) -> None:
    """Makes engine.offload_states() end in an error that says why; DeepSpeed asserts its FusedAdam there."""
    replace_method(zero3, "offload_states", _offload_states)


def _offload_states(_original, *_arguments, **_keywords):
    raise ValueError(
        "offload_states() is not supported with ZeroMuon: the step holds on to where its states are; to keep them "
        "on the CPU use zero_optimization.offload_optimizer.device cpu"
    )
