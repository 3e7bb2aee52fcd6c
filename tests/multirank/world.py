"""What every row needs on a rank: the process group, a small model, its data, an engine."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os

import torch
import torch.distributed as dist
from torch import nn

from tests.multirank.cases import STEPS, Case, deepspeed_config, optimizer_options


def start() -> None:
    """Joins the process group. ZEROMUON_TEST_DEVICE=cuda runs on GPUs over NCCL."""
    on_gpu = os.environ.get("ZEROMUON_TEST_DEVICE") == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # An optional shared-memory collective that is compiled on first use; gloo gives the same results.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.backends.cuda.matmul.allow_tf32 = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=60))
    import zeromuon

    zeromuon.register()


def device() -> torch.device:
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def small_model() -> nn.Sequential:
    """Odd sizes, square, tall and wide matrices, two with fewer elements than three ranks."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 2, bias=False), nn.Tanh(),
        nn.Linear(2, 1, bias=False), nn.Tanh(), nn.Linear(1, 13), nn.Tanh(), nn.Linear(13, 13), nn.Tanh(),
        nn.Linear(13, 5),
    )


MATRICES = 7


def batches(case: Case, world: int):
    """[step][micro-batch][rank] -> (inputs (4, 16), classes (4,))"""
    generator = torch.Generator().manual_seed(7)

    def batch():
        return torch.randn(4, 16, generator=generator), torch.randint(0, 5, (4,), generator=generator)

    return [[[batch() for _ in range(world)] for _ in range(case.accumulation)] for _ in range(STEPS)]


def loss_of(module, batch) -> torch.Tensor:
    inputs, classes = (t.to(device()) for t in batch)
    return nn.functional.cross_entropy(module(inputs), classes)


def build_model(case: Case):
    """The model, partitioned from the start when the case says zero.Init."""
    import deepspeed

    if not case.zero_init:
        model = small_model()
    else:
        whole = small_model().state_dict()
        with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(case)):
            model = small_model()
        for name, param in model.named_parameters():
            with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
                if dist.get_rank() == 0:
                    param.data.copy_(whole[name])
    for name, param in model.named_parameters():
        param.requires_grad_(name not in case.frozen)
    return model


def build_optimizer(case: Case, model):
    import zeromuon

    if case.route == "json":
        return None
    if case.route == "groups":
        return zeromuon.ZeroMuon(zeromuon.param_groups(model), **optimizer_options(case))
    trainable = list(model.parameters())
    for param in trainable:
        param.use_muon = param.dim() == 2
    return zeromuon.ZeroMuon([{"params": trainable[:5]}, {"params": trainable[5:]}], **optimizer_options(case))


def build_engine(case: Case, model=None, config=None):
    """(model, engine); what the optimizer prints about roles is not shown."""
    import deepspeed

    model = build_model(case) if model is None else model
    config = deepspeed_config(case) if config is None else config
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = build_optimizer(case, model)
        given = {"optimizer": optimizer} if optimizer else {"model_parameters": list(model.parameters())}
        engine, *_ = deepspeed.initialize(model=model, config=config, **given)
    return model, engine


def train(engine, data, steps) -> None:
    for step in steps:
        for micro_batch in data[step]:
            engine.backward(loss_of(engine, micro_batch[dist.get_rank()]))
            engine.step()


def whole_weights(model) -> dict[str, torch.Tensor]:
    """name -> whole fp32 master weight, on the CPU."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, param in model.named_parameters():
        full = safe_get_full_fp32_param(param) if param.requires_grad else None
        if full is not None:
            weights[name] = full.detach().float().cpu().clone()
    return weights


def shards_of(engine) -> list[torch.Tensor]:
    """Copies of every tensor that a step changes on this rank."""
    zero3 = engine.optimizer
    optimizer = zero3.optimizer
    states = [v for f in zero3.fp32_partitioned_groups_flat for v in optimizer.state.get(f, {}).values()]
    return [t.detach().clone() for t in [*zero3.fp32_partitioned_groups_flat, *states] if torch.is_tensor(t)]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Bit for bit, so that NaN in padding equals itself."""
    return len(a) == len(b) and all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b))


def on_all_ranks(value) -> list:
    """What every rank has, in rank order."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
