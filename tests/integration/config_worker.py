"""Trains a tiny model for 2 steps under each file of configs/; rank 0 writes what happened, as JSON, to argv[1]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from tests.integration.hosts import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

import zeromuon
from zeromuon.commands.finetune.ds_config import fill_auto, read_config
from zeromuon.commands.finetune.settings import Settings

STEPS = 2
ROWS, TOKENS, VOCABULARY = 4, 16, 64


def configs() -> list[Path]:
    return sorted((ROOT / "configs").glob("zero3_*.json"))


def start() -> None:
    # An optional shared-memory collective that is compiled on first use; gloo gives the same results.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    # DeepSpeed trains in fp16 only where the accelerator lists it; torch's CPU kernels can, if slowly.
    get_accelerator().supported_dtypes = lambda: [torch.float32, torch.bfloat16, torch.float16]
    get_accelerator().is_fp16_supported = lambda: True
    zeromuon.register()


def filled(path: Path) -> dict:
    """The file as `zeromuon finetune --config` reads it, on a machine with bf16."""
    settings = Settings(model="", data="", config=str(path), ranks=2, steps=STEPS, batch=ROWS)
    return fill_auto(read_config(path), settings, bf16=True)


def build(config: dict):
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=config):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=TOKENS,
            )
        )


def batch(seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(seed))


def train(config: dict) -> dict:
    model = build(config)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    zero3, optimizer = engine.optimizer, engine.optimizer.optimizer
    before, losses = whole(model), []
    for step in range(STEPS):
        rows = batch(step + STEPS * engine.global_rank)
        loss = engine(input_ids=rows, labels=rows).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "counters": optimizer.counters(),
        "dtype": str(zero3.dtype),
        "accumulation": str(zero3.gradient_accumulation_dtype),
        "offload_optimizer": bool(zero3.offload_optimizer),
        "offload_param": bool(zero3.offload_param),
        "changed": {name: not torch.equal(weight, before[name]) for name, weight in whole(model).items()},
    }


def whole(model) -> dict:
    """name -> fp32 master weight: a step may be too small for a weight of 16 bits."""
    return {name: safe_get_full_fp32_param(param).clone() for name, param in model.named_parameters()}


def main() -> None:
    start()
    results = {path.name: train(filled(path)) for path in configs()}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
