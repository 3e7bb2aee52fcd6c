"""Configurations that are trained on real ZeRO-3 and compared with the reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from tests.multirank import schedules

STEPS = 5
LR, ADAM_LR = 0.02, 0.002
INCLUDE = {"small": ("6.weight", "8.weight")}  # of one row and one column, which the rules leave to AdamW


@dataclass(frozen=True)
class Case:
    """One training configuration; defaults are the plainest. name says what it is about."""

    name: str
    model: str = "small"  # a key of models.MODELS
    offload: bool = False
    accumulation: int = 1
    clip: float = 0.0
    zero_init: bool = False
    reduce_scatter: bool = True
    reduce_bucket: int = 10**8
    sub_group: int = 10**9
    persistence: int = 0
    route: str = "json"  # json | groups (param_groups, an object) | tags (use_muon, several groups)
    frozen: tuple = ()  # names of parameters
    group_decay: float | None = None  # weight_decay of the first group of the tags route, told by its user
    schedule: str = "constant"  # a key of schedules.SCHEDULES
    dtype: str = "fp32"  # fp32 | bf16 | fp16: of the model; 16-bit cases compare with captured gradients
    offload_param: bool = False
    extra: dict = field(default_factory=dict)  # further keys of the DeepSpeed config
    options: dict = field(default_factory=dict)

    def only_in_full(self, world_size: int) -> bool:
        """On 3 ranks CI has the cases in which the cut of the slices is not the plain one: it decides what is sent."""
        plain_cut = self.sub_group == 10**9 and not self.frozen and self.persistence == 0
        return world_size == 3 and plain_cut

    def as_dict(self) -> dict:
        return asdict(self)


def deepspeed_config(case: Case) -> dict:
    """The DeepSpeed configuration of a case; the optimizer is in it only for the JSON route."""
    zero = {
        "stage": 3,
        "reduce_scatter": case.reduce_scatter,
        "reduce_bucket_size": case.reduce_bucket,
        "sub_group_size": case.sub_group,
        "stage3_param_persistence_threshold": case.persistence,
    }
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if case.offload_param:
        zero["offload_param"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": case.clip,
        "zero_optimization": zero,
        **case.extra,
    }
    if case.dtype != "fp32":
        config[case.dtype] = {"enabled": True, **case.extra.get(case.dtype, {})}
    if case.route == "json":
        config["optimizer"] = {"type": "ZeroMuon", "params": {**optimizer_options(case), **selection(case)}}
    else:
        config["zero_allow_untested_optimizer"] = True
        config["zero_force_ds_cpu_optimizer"] = False
    return schedules.with_scheduler(case, config)


def selection(case: Case) -> dict:
    """Who gets Muon against the rules, as param_groups takes it."""
    include = [name for name in INCLUDE.get(case.model, ()) if name not in case.frozen]
    return {"include": include} if include else {}


def optimizer_options(case: Case) -> dict:
    return {
        "lr": LR,
        "adam_lr": ADAM_LR,
        "scale": "original",
        "ns_form": "standard",
        "ns_dtype": "float32",
        **case.options,
    }
