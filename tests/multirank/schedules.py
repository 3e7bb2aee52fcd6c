"""Learning-rate schedules of torch, DeepSpeed and Hugging Face, and values changed by hand.

The values that a step must use come from the same schedule on a plain torch optimizer, which is stepped beside it.
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
    """Halves lr and sets another decay before the third step, and sets lr 0 for the fourth."""
    if case.schedule != "by hand" or step not in (2, 3):
        return
    for group in groups:
        group["lr"] = 0.01 if step == 2 else 0.0
        group["weight_decay"] = 0.3


def expected_values(case, lr: float, weight_decay: float, steps: int) -> list[tuple[float, float]]:
    """(lr, weight_decay) of each step, from the schedule on a plain SGD with one parameter."""
    import torch
    from deepspeed.runtime import lr_schedules

    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, weight_decay=weight_decay)
    if case.schedule in IN_CONFIG:
        section = IN_CONFIG[case.schedule]
        scheduler = getattr(lr_schedules, section["type"])(plain, **section["params"])
    else:
        build = scheduler_for(case)
        scheduler = build(plain) if build else None
    values = []
    for step in range(steps):
        change_by_hand(case, plain.param_groups, step)
        values.append((float(plain.param_groups[0]["lr"]), plain.param_groups[0]["weight_decay"]))
        plain.step()
        if scheduler is not None:
            scheduler.step()
    return values
