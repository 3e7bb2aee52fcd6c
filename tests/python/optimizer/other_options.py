"""For every option a valid value that is not its default; a new option must be given one here."""

OTHER = {
    "lr": 0.2,
    "adam_lr": 0.3,
    "momentum": 0.8,
    "nesterov": False,
    "momentum_kind": "heavy_ball",
    "weight_decay": 0.4,
    "cautious_wd": True,
    "betas": (0.8, 0.9),
    "eps": 0.1,
    "scale": "original",
    "ns": ((2.0, -1.5, 0.5),) * 6,
    "ns_form": "gram",
    "ns_dtype": "float32",
    "wire_dtype": "bfloat16",
    "momentum_device": "cpu",
    "momentum_dtype": "bfloat16",
    "cpu_kernels": "generic",
    "fused_step": "off",
    "max_bytes_in_flight": 2**20,
    "stage_timeout_s": 60.0,
}
