"""The checkpoints that real DeepSpeed writes for the tests, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

LR, ADAM_LR, WEIGHT_DECAY, MOMENTUM, BETAS, EPS = 0.02, 0.004, 0.1, 0.9, (0.8, 0.95), 1e-8
SAVED_AFTER = 3  # steps
SUB_GROUP = 100  # elements per rank; the zoo has 505


@dataclass(frozen=True)
class Kind:
    """One training run. optimizer: "AdamW", "ZeroMuon" or "Muon" (DeepSpeed's own). dtype: fp32, bf16 or fp16.

    sub_group: sub_group_size. offload: "", "cpu" or a folder for NVMe. options: further params of the optimizer.
    universal: the run loads universal checkpoints.
    """

    optimizer: str
    dtype: str = "fp32"
    sub_group: int = SUB_GROUP
    offload: str = ""
    universal: bool = False
    options: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        return asdict(self)


KINDS = {
    f"{optimizer}-{dtype}": Kind(optimizer, dtype)
    for optimizer in ("AdamW", "ZeroMuon", "Muon")
    for dtype in ("fp32", "bf16")
}
# On two ranks only.
MORE_KINDS = {
    "AdamW-fp16": Kind("AdamW", "fp16"),
    "ZeroMuon-offload": Kind("ZeroMuon", offload="cpu", sub_group=10**9),
    "ZeroMuon-heavy-ball": Kind("ZeroMuon", options={"momentum_kind": "heavy_ball"}),
}


def optimizer_params(kind: Kind) -> dict:
    """ "params" of the optimizer in the DeepSpeed configuration."""
    if kind.optimizer == "AdamW":
        told = {"lr": ADAM_LR, "betas": list(BETAS), "eps": EPS, "weight_decay": WEIGHT_DECAY, "torch_adam": True}
    elif kind.optimizer == "ZeroMuon":
        told = {
            "lr": LR,
            "adam_lr": ADAM_LR,
            "momentum": MOMENTUM,
            "betas": list(BETAS),
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            "scale": "original",
            "ns_dtype": "float32",
        }
    else:
        told = {
            "lr": LR,
            "adam_lr": ADAM_LR,
            "momentum": MOMENTUM,
            "betas": list(BETAS),
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            "torch_adam": True,
            "ns_method": "standard",
        }
    return {**told, **kind.options}


def deepspeed_config(kind: Kind) -> dict:
    zero = {
        "stage": 3,
        "sub_group_size": kind.sub_group,
        "stage3_param_persistence_threshold": 0,
        "reduce_scatter": kind.optimizer != "Muon",
    }
    if kind.offload:
        zero["offload_optimizer"] = (
            {"device": "cpu"} if kind.offload == "cpu" else {"device": "nvme", "nvme_path": kind.offload}
        )
    # Clipping divides by a norm, a sum over ranks that rounds in another way on each number of them.
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "optimizer": {"type": kind.optimizer, "params": optimizer_params(kind)},
    }
    if kind.dtype != "fp32":
        config[kind.dtype] = {"enabled": True}
    if kind.dtype == "fp16":
        config["fp16"]["initial_scale_power"] = 4
    if kind.universal:
        config["checkpoint"] = {"load_universal": True}
    return config
