"""Learning-rate schedules of torch, DeepSpeed and Hugging Face, and values changed by hand.

The values that a step must use come from the same schedule on a plain torch optimizer of two groups, Muon's and AdamW's, which is
stepped beside it; a rate that the config says once is told that scheduler once for each group here.
"""

from __future__ import annotations

STEPS_IN_ALL = 6
# name -> the "scheduler" section of the DeepSpeed config
IN_CONFIG = {
    "WarmupLR": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.02, "warmup_num_steps": 2, "warmup_type": "linear"},
    },
    "WarmupDecayLR": {
        "type": "WarmupDecayLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.02, "warmup_num_steps": 2, "total_num_steps": STEPS_IN_ALL},
    },
    "a rate for each group": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": [0, 0.001], "warmup_max_lr": [0.02, 0.007], "warmup_num_steps": 2},
    },
    "rates that meet": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": [0.004, 0.02], "warmup_max_lr": [0.02, 0.004], "warmup_num_steps": 3},
    },
    "OneCycle": {
        "type": "OneCycle",
        "params": {"cycle_min_lr": 0.005, "cycle_max_lr": 0.02, "cycle_first_step_size": 2},
    },
}
_RATES = ("warmup_min_lr", "warmup_max_lr", "cycle_min_lr", "cycle_max_lr")
# Before which step -> role -> what is written into its groups by hand.
BY_HAND = {
    2: {
        "muon": {"lr": 0.01, "weight_decay": 0.3, "momentum": 0.8, "nesterov": False},
        "adamw": {"lr": 0.004, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6},
    },
    3: {"muon": {"lr": 0.0}, "adamw": {"lr": 0.0}},
    4: {"muon": {"lr": 0.02, "nesterov": True}, "adamw": {"lr": 0.003}},
}


def with_scheduler(case, config: dict) -> dict:
    return {**config, "scheduler": IN_CONFIG[case.schedule]} if case.schedule in IN_CONFIG else config


def scheduler_for(case):
    """What deepspeed.initialize gets as lr_scheduler: a callable that takes the optimizer, or None."""
    import torch

    if case.schedule == "torch LambdaLR":  # lr 0 in the first step
        return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    if case.schedule == "Hugging Face linear":
        from transformers import get_linear_schedule_with_warmup

        return lambda optimizer: get_linear_schedule_with_warmup(optimizer, 2, STEPS_IN_ALL)
    return None


def change_by_hand(case, groups, step: int) -> None:
    """Writes other values into the groups before some steps."""
    if case.schedule == "by hand":
        for group in groups:
            group.update(BY_HAND.get(step, {}).get("adamw" if "betas" in group else "muon", {}))


def expected_values(case, muon, steps: int) -> list[dict]:
    """Attributes of the reference `muon` in each step."""
    import torch

    names = {"muon": ("momentum", "nesterov"), "adamw": ("betas", "eps")}
    groups = [
        {
            "params": [torch.zeros(1, requires_grad=True)],
            "lr": lr,
            **{name: getattr(muon, name) for name in names[role]},
        }
        for role, lr in (("muon", muon.lr), ("adamw", muon.adam_lr))
    ]
    plain = torch.optim.SGD(groups, lr=muon.lr, weight_decay=muon.weight_decay, nesterov=False)
    scheduler, values = _scheduler(case, plain, muon.adam_lr / muon.lr), []
    for step in range(steps):
        change_by_hand(case, plain.param_groups, step)
        first, second = plain.param_groups
        values.append(
            {"lr": float(first["lr"]), "adam_lr": float(second["lr"]), "weight_decay": first["weight_decay"]}
            | {name: first[name] for name in names["muon"]}
            | {name: second[name] for name in names["adamw"]}
        )
        plain.step()  # without gradients: it stands still
        if scheduler is not None:
            scheduler.step()
    return values


def _scheduler(case, plain, ratio: float):
    from deepspeed.runtime import lr_schedules

    if case.schedule not in IN_CONFIG:
        build = scheduler_for(case)
        return build(plain) if build else None
    section = IN_CONFIG[case.schedule]
    params = {
        key: [value, value * ratio] if key in _RATES and not isinstance(value, list) else value
        for key, value in section["params"].items()
    }
    return getattr(lr_schedules, section["type"])(plain, **params)
