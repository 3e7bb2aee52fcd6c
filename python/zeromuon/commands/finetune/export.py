"""The trained model as safetensors, gathered from the shards, and the proof that it loads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from .evaluation import stock_linear
from ...selection.language_model import auto_class
from .model_loading import LoadedModel


def gather_state(model, rank: int) -> dict:
    """Name -> whole tensor on the CPU, on rank 0; {} elsewhere. Every rank must call it.

    Parameters that share storage share it here too. Buffers that are not saved are left out.
    """
    import deepspeed

    state, copies = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter]):
            if rank == 0:
                if id(parameter) not in copies:
                    copies[id(parameter)] = parameter.detach().to("cpu", copy=True)
                state[name] = copies[id(parameter)]
    return {**state, **_saved_buffers(model)} if rank == 0 else {}


def _saved_buffers(model) -> dict:
    found = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer.detach().cpu()
    return found


def save_model(loaded: LoadedModel, folder: Path, rank: int) -> None:
    """Writes model.safetensors, config.json and the tokenizer to `folder`. Every rank must call it."""
    state = gather_state(loaded.model, rank)
    if rank != 0:
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    loaded.model.save_pretrained(unfinished, state_dict=state)
    loaded.tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def verify_model(task: str, folder: Path, engine_logits, input_ids) -> str:
    """Loads `folder` again and compares its logits with those of the trained engine; returns their sha256.

    engine_logits: [B, T, vocabulary]; input_ids: [B, T] int64. Raises RuntimeError if a key is missing or a bit differs.
    """
    import torch

    reloaded, info = auto_class(task).from_pretrained(folder, dtype=engine_logits.dtype, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise RuntimeError(
            f"{folder}: expected no missing and no unexpected keys, found {info['missing_keys']} and"
            f" {info['unexpected_keys']}"
        )
    reloaded.eval().to(input_ids.device)
    with torch.no_grad(), stock_linear():
        logits = reloaded(input_ids=input_ids).logits
    if not torch.equal(logits, engine_logits):
        worst = (logits - engine_logits).abs().max().item()
        raise RuntimeError(
            f"{folder}: the saved model's logits differ from the trained one's by up to {worst:.3g},"
            " expected the same bits"
        )
    return logits_sha256(logits)


def logits_sha256(logits) -> str:
    """Hex digest of the logits' values as fp32 bytes."""
    return hashlib.sha256(logits.float().cpu().contiguous().numpy().tobytes()).hexdigest()
