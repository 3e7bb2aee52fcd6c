"""What every row needs on a rank: the process group, a small model, its data, an engine."""

from __future__ import annotations

import contextlib
import io
import logging
import os

import torch
import torch.distributed as dist
from zeromuon.commands.compare import kit
from zeromuon.commands.compare.kit import on_all_ranks as on_all_ranks, whole_weights as whole_weights
from zeromuon.ranks.connect import connect

from tests.multirank import models, schedules
from tests.multirank.cases import Case, deepspeed_config, optimizer_options, selection


def start() -> None:
    """Joins the process group. ZEROMUON_TEST_DEVICE=cuda runs on GPUs over NCCL."""
    on_gpu = os.environ.get("ZEROMUON_TEST_DEVICE") == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    connect(logging.ERROR, seconds=60)
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    else:
        kit.allow_fp16_on_cpus()
    torch.set_printoptions(threshold=0, edgeitems=1)  # DeepSpeed makes a text of every parameter of every engine
    import zeromuon

    zeromuon.register()


FIRST_GROUP = 5  # trainable parameters in the first group of the tags route


def device() -> torch.device:
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def loss_of(module, batch) -> torch.Tensor:
    inputs, targets = (t.to(device()) for t in batch)
    if inputs.is_floating_point():
        inputs = inputs.to(next(module.parameters()).dtype)
    return models.loss(module(inputs), targets)


def build_model(case: Case):
    """The model, partitioned from the start when the case says zero.Init."""
    if case.zero_init:
        model = kit.under_zero_init(lambda: models.build(case), deepspeed_config(case))
    else:
        model = models.build(case)
    for name, param in model.named_parameters():
        if name in case.frozen:
            param.requires_grad_(False)
    return model


def build_optimizer(case: Case, model):
    import zeromuon

    if case.route == "json":
        return None
    if case.route == "groups":
        return zeromuon.ZeroMuon(zeromuon.param_groups(model, **selection(case)), **optimizer_options(case))
    return zeromuon.ZeroMuon(_own_groups(case, model), **optimizer_options(case))


def _own_groups(case: Case, model) -> list[dict]:
    """Two groups with tags instead of param_groups; the first with a decay of its own when the case tells one."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, param in trainable:
        shape = getattr(param, "ds_shape", param.shape)  # zero.Init leaves shape (0,)
        param.use_muon = models.MODELS[case.model].role(name, tuple(shape)) == "muon"
    told = {} if case.group_decay is None else {"weight_decay": case.group_decay}
    params = [p for _, p in trainable]
    return [{"params": params[:FIRST_GROUP], **told}, {"params": params[FIRST_GROUP:]}]


def build_engine(case: Case, model=None, config=None):
    """(model, engine); what the optimizer prints about roles is not shown. model: another than the case's."""
    config = deepspeed_config(case) if config is None else config
    if model is not None:
        config.get("optimizer", {}).get("params", {}).pop("include", None)  # names of the case's
    model = build_model(case) if model is None else model
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = build_optimizer(case, model)
    return model, initialize(model, config, list(model.parameters()), optimizer, schedules.scheduler_for(case))


def initialize(model, config: dict, parameters, optimizer=None, lr_scheduler=None):
    """The engine, quietly. parameters: what DeepSpeed is given when there is no optimizer."""
    given = {"optimizer": optimizer} if optimizer else {"model_parameters": parameters}
    return kit.initialize(model, config, lr_scheduler=lr_scheduler, **given)


def train(engine, data, steps, case: Case | None = None) -> None:
    for step in steps:
        if case is not None:
            schedules.change_by_hand(case, engine.optimizer.optimizer.param_groups, step)
        for micro_batch in data[step]:
            engine.backward(loss_of(engine, micro_batch[dist.get_rank()]))
            engine.step()


def shards_of(engine) -> list[torch.Tensor]:
    """Copies of every tensor that a step changes on this rank."""
    zero3 = engine.optimizer
    optimizer = zero3.optimizer
    states = [v for f in zero3.fp32_partitioned_groups_flat for v in optimizer.state.get(f, {}).values()]
    return [t.detach().clone() for t in [*zero3.fp32_partitioned_groups_flat, *states] if torch.is_tensor(t)]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Bit for bit, so that NaN in padding equals itself."""
    return len(a) == len(b) and all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b))
