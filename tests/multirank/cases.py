"""Configurations that are trained on real ZeRO-3 and compared with the reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

STEPS = 5
LR, ADAM_LR = 0.02, 0.002


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
    options: dict = field(default_factory=dict)
    mutation_check: bool = False

    def as_dict(self) -> dict:
        return asdict(self)


def _options(**given) -> dict:
    return given


PARITY = (
    Case("plain"),
    Case("offload", offload=True),
    Case("form by shape", options=_options(ns_form="auto")),
    Case("offload, form by shape", offload=True, options=_options(ns_form="auto")),
    Case("accumulation 4", accumulation=4),
    Case("offload, accumulation 4", offload=True, accumulation=4),
    Case("clipping", clip=0.05),
    Case("offload, clipping", offload=True, clip=0.05),
    Case("accumulation and clipping, small sub-groups, a bucket smaller than a matrix", accumulation=4, clip=0.05,
         sub_group=150, reduce_bucket=50, mutation_check=True),
    Case("offload, accumulation and clipping, small sub-groups, weight decay", offload=True, accumulation=2, clip=0.05,
         sub_group=150, options=_options(weight_decay=0.1), mutation_check=True),
    Case("zero.Init", zero_init=True, clip=0.05),
    Case("offload, zero.Init, reduce_scatter false", offload=True, zero_init=True, reduce_scatter=False),
    Case("reduce_scatter false, a bucket smaller than a matrix", reduce_scatter=False, reduce_bucket=50),
    Case("offload, a bucket smaller than a matrix", offload=True, reduce_bucket=50, accumulation=2),
    Case("frozen parameters", frozen=("2.weight", "2.bias", "8.bias"), clip=0.05),
    Case("persistent parameters", persistence=10**5, sub_group=150),
    Case("optimizer object from param_groups", route="groups", options=_options(weight_decay=0.05)),
    Case("offload, zero.Init, optimizer object from param_groups", route="groups", offload=True, zero_init=True,
         accumulation=2),
    Case("groups of one's own with use_muon tags", route="tags", clip=0.05, sub_group=150),
    Case("heavy ball", options=_options(momentum_kind="heavy_ball", momentum=0.9)),
    Case("no nesterov, match_rms_adamw", options=_options(nesterov=False, scale="match_rms_adamw", lr=0.03)),
    Case("offload, spectral scale, other betas", offload=True,
         options=_options(scale="spectral_unclamped", betas=[0.8, 0.9], eps=1e-6)),
    Case("own triples, scale none", options=_options(ns=[[2.0, -1.5, 0.5]] * 6, scale="none")),
    Case("gram form, well conditioned", model="well conditioned", options=_options(ns_form="gram")),
    Case("offload, gram form, well conditioned, clipping", model="well conditioned", offload=True, clip=0.05,
         accumulation=2, options=_options(ns_form="gram", weight_decay=0.1)),
    Case("convolutions and transposed storage", model="convolutions", clip=0.05, options=_options(weight_decay=0.1)),
    Case("offload, zero.Init, convolutions and transposed storage", model="convolutions", offload=True, zero_init=True,
         accumulation=2, sub_group=150, options=_options(scale="spectral_unclamped")),
    Case("offload, heavy ball without nesterov, clipping, small sub-groups, a bucket smaller than a matrix",
         offload=True, accumulation=2, clip=0.05, zero_init=True, reduce_scatter=False, reduce_bucket=50,
         sub_group=150, options=_options(momentum_kind="heavy_ball", nesterov=False, momentum=0.9)),
    Case("frozen and persistent parameters, heavy ball, zero.Init, weight decay", zero_init=True, accumulation=2,
         reduce_scatter=False, persistence=10**5, frozen=("2.weight", "2.bias", "8.bias"), reduce_bucket=50,
         options=_options(momentum_kind="heavy_ball", weight_decay=0.1)),
    Case("offload, frozen and persistent parameters, no nesterov, small sub-groups", offload=True, clip=0.05,
         accumulation=2, persistence=10**5, frozen=("2.weight", "2.bias", "8.bias"), sub_group=150,
         options=_options(nesterov=False)),
    Case("offload, groups with a decay of their own, accumulation", route="tags", offload=True, accumulation=2,
         group_decay=0.3, reduce_scatter=False, reduce_bucket=50, persistence=10**5,
         options=_options(weight_decay=0.1, nesterov=False)),
    Case("zero.Init, groups of one's own, frozen parameters, heavy ball", route="tags", zero_init=True,
         frozen=("2.weight", "2.bias", "8.bias"), options=_options(momentum_kind="heavy_ball")),
    Case("optimizer object, clipping, small sub-groups, frozen and persistent parameters, heavy ball", route="groups",
         clip=0.05, sub_group=150, reduce_scatter=False, reduce_bucket=50, persistence=10**5,
         frozen=("2.weight", "2.bias", "8.bias"), options=_options(momentum_kind="heavy_ball", nesterov=False)),
)

# Longer products of the above, for --full.
FULL = tuple(
    Case(f"all: offload {offload}, accumulation {acc}, clip {clip}, zero.Init {init}, scatter {scatter}",
         offload=offload, accumulation=acc, clip=clip, zero_init=init, reduce_scatter=scatter,
         reduce_bucket=50, sub_group=150, options=_options(weight_decay=0.1))
    for offload in (False, True) for acc in (1, 3) for clip in (0.0, 0.05)
    for init in (False, True) for scatter in (False, True)
)


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
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": case.clip,
        "zero_optimization": zero,
    }
    if case.route == "json":
        config["optimizer"] = {"type": "ZeroMuon", "params": optimizer_options(case)}
    else:
        config["zero_allow_untested_optimizer"] = True
        config["zero_force_ds_cpu_optimizer"] = False
    return config


def optimizer_options(case: Case) -> dict:
    return {"lr": LR, "adam_lr": ADAM_LR, "scale": "original", "ns_form": "standard", **case.options}
