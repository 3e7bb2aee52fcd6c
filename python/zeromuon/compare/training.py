"""What every row needs: the process group, a small model, its data, an engine of either system, the reference."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import io
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from .rows import OURS

STEPS = 5
LR, ADAM_LR, EPS = 0.02, 0.002, 1e-8
JORDAN = [(3.4445, -4.775, 2.0315)] * 5
_spoilt = {"factor": 1.0}


def start(spoil: bool = False) -> None:
    """Joins the process group over gloo and makes both optimizer types known. spoil: see :func:`ours`."""
    import deepspeed
    import deepspeed.ops

    # An optional shared-memory collective that is compiled on first use; gloo gives the same results.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _let_accelerator_use_fp16()
    deepspeed.init_distributed("gloo", timeout=datetime.timedelta(seconds=60))
    from .. import register

    register()
    _spoilt["factor"] = 1.01 if spoil else 1.0
    _newton_schulz_in_fp32()


def _let_accelerator_use_fp16() -> None:
    """DeepSpeed trains in fp16 only where the accelerator lists it; torch's CPU kernels can."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.supported_dtypes = lambda: [torch.float32, torch.bfloat16, torch.float16]
    accelerator.is_fp16_supported = lambda: True


def _newton_schulz_in_fp32() -> None:
    """DeepSpeed's products in fp32, so that a row shows its defect and not the rounding of 16-bit products."""
    with contextlib.suppress(ImportError):
        from deepspeed.runtime.zero.muon import original_muon

        original_muon.ns_compute_dtype = lambda ns_method="gram": torch.float32


# ---- model and data ------------------------------------------------------------------------------


def build_model() -> nn.Sequential:
    """Square, tall and wide matrices and vectors; the same weights on every rank. All Linear weights get Muon in both
    systems, so that roles play no part."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(),
                         nn.Linear(24, 5))


def batches(steps: int, accumulation: int = 1):
    """[step][micro-batch][rank] -> (inputs (8, 16), classes (8,))"""
    generator = torch.Generator().manual_seed(7)

    def batch():
        return torch.randn(8, 16, generator=generator), torch.randint(0, 5, (8,), generator=generator)

    ranks = range(dist.get_world_size())
    return [[[batch() for _ in ranks] for _ in range(accumulation)] for _ in range(steps)]


def loss_of(module, batch, factor: float = 1.0) -> torch.Tensor:
    inputs, classes = batch
    outputs = module(inputs.to(next(module.parameters()).dtype))
    return nn.functional.cross_entropy(outputs, classes) * factor


# ---- engines -------------------------------------------------------------------------------------


def optimizer_section(system: str) -> dict:
    """The same optimizer in the words of either system."""
    if system == OURS:
        return {"type": "ZeroMuon", "params": {"lr": LR * _spoilt["factor"], "adam_lr": ADAM_LR, "eps": EPS,
                                               "scale": "original", "ns_form": "standard", "wire_dtype": "float32"}}
    return {"type": "Muon", "params": {"muon_lr": LR, "adam_lr": ADAM_LR, "eps": EPS, "betas": [0.9, 0.95],
                                       "momentum": 0.95, "weight_decay": 0.0, "ns_method": "standard",
                                       "torch_adam": True}}


def config_for(system: str, zero: dict | None = None, **sections) -> dict:
    """zero: changes to the section zero_optimization. reduce_scatter is off, which DeepSpeed's Muon asks for."""
    return {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_clipping": 0.0,
        "optimizer": optimizer_section(system),
        "zero_optimization": {"stage": 3, "reduce_scatter": False, "stage3_param_persistence_threshold": 0,
                              **(zero or {})},
        **sections,
    }


def build_engine(config: dict, model: nn.Module | None = None):
    import deepspeed

    model = build_model() if model is None else model
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    return engine


def model_under_zero_init(config: dict, build=build_model) -> nn.Module:
    """The same weights, partitioned from the start."""
    import deepspeed

    whole = build().state_dict()
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = build()
    for name, param in model.named_parameters():
        with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
            if dist.get_rank() == 0:
                param.data.copy_(whole[name])
    return model


def train(engine, data, factor: float = 1.0) -> None:
    for step in data:
        for micro_batch in step:
            engine.backward(loss_of(engine, micro_batch[dist.get_rank()], factor))
            engine.step()


def weights_of(engine) -> dict[str, torch.Tensor]:
    """name -> whole fp32 master weight."""
    from deepspeed.utils import safe_get_full_fp32_param

    return {n: safe_get_full_fp32_param(p).detach().float().cpu().clone() for n, p in engine.module.named_parameters()}


def largest(values: float) -> float:
    """The largest of all ranks."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, float(values))
    return max(found)


# ---- the reference -------------------------------------------------------------------------------


def distance(a: dict, b: dict) -> float:
    return max((a[n].double() - b[n].double()).abs().max().item() for n in b)


def reference_run(data, clip: float = 0.0):
    """(weights, raw gradient norm of the last step) of one process on whole tensors and all ranks' batches."""
    model = build_model()
    params = dict(model.named_parameters())
    roles = {n: "muon" if p.ndim >= 2 else "adamw" for n, p in params.items()}
    muon = _reference_module().Muon({n: p.data for n, p in params.items()}, roles, JORDAN, LR, ADAM_LR, eps=EPS)
    for step in data:
        model.zero_grad()
        for ranks in step:
            inputs, classes = (torch.cat(parts) for parts in zip(*ranks))
            (loss_of(model, (inputs, classes)) / len(step)).backward()
        norm = muon.step({n: p.grad for n, p in params.items()}, clip)
    return {n: p.detach() for n, p in params.items()}, norm


def _reference_module():
    """The specification: of the installed package, or of the source tree it runs from."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "compare" / "reference_muon.py", package.parents[1] / "tests" / "reference" / "muon.py")
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        raise ValueError(f"zeromuon compare: the reference is in none of {', '.join(map(str, candidates))}")
    spec = importlib.util.spec_from_file_location("zeromuon_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
