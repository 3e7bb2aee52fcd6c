"""The model of a run: loaded, with what is random in it said; saved as safetensors from the shards; proved to load."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ...base import durable
from ...selection.language_model import MASKED, auto_class, detect_task
from .evaluation import stock_linear


@dataclass(frozen=True)
class LoadedModel:
    """model: a transformers module in fp32 on the CPU, the same on every rank."""

    model: object
    tokenizer: object
    task: str
    random_parameters: tuple[str, ...]

    def describe(self, seed: int) -> str:
        sentence = f"{type(self.model).__name__}: a {'masked' if self.task == MASKED else 'causal'} language model"
        if not self.random_parameters:
            return sentence
        count, names = len(self.random_parameters), ", ".join(self.random_parameters)
        return f"{sentence}; {count} parameters are not in the folder and start at random (seed {seed}): {names}"


def load_model(path: str, seed: int) -> LoadedModel:
    """Loads the folder `path` in fp32; parameters that it lacks are drawn from `seed`.

    Raises ValueError if its task is neither masked nor causal LM.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    task = detect_task(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    model, info = auto_class(task).from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    return LoadedModel(model, tokenizer, task, tuple(sorted(info["missing_keys"])))


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
    if rank != 0:
        return {}
    return {**state, **{name: buffer.cpu() for name, buffer in model.state_dict().items() if name not in state}}


def save_model(loaded: LoadedModel, folder: Path, rank: int) -> None:
    """Writes model.safetensors, config.json and the tokenizer to `folder`, and they are on disk. Every rank must call it.

    A model that is there already goes once the new one is whole; meanwhile it may be called `folder`.old.
    """
    state = gather_state(loaded.model, rank)
    if rank != 0:
        return
    unfinished, old = (folder.with_name(f"{folder.name}.{word}") for word in ("unfinished", "old"))
    durable.remove(unfinished)
    loaded.model.save_pretrained(unfinished, state_dict=state)
    loaded.tokenizer.save_pretrained(unfinished)
    durable.sync_tree(unfinished)
    if folder.exists() or folder.is_symlink():
        durable.remove(old)
        folder.rename(old)
    unfinished.rename(folder)
    durable.sync(folder.parent)
    durable.remove(old)


def verify_model(task: str, folder: Path, engine_logits, input_ids) -> str:
    """Loads `folder` again and compares its logits with those of the trained engine; returns their sha256.

    engine_logits: [B, T, vocabulary]; input_ids: [B, T] int64. Raises RuntimeError if a key is missing or a bit differs.
    """
    reloaded, info = auto_class(task).from_pretrained(folder, dtype=engine_logits.dtype, output_loading_info=True)
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    if missing or unexpected:
        raise RuntimeError(f"{folder}: expected no missing and no unexpected keys, found {missing} and {unexpected}")
    reloaded.eval().to(input_ids.device)
    with torch.no_grad(), stock_linear():
        logits = reloaded(input_ids=input_ids).logits
    if not torch.equal(logits, engine_logits):
        worst = (logits - engine_logits).abs().max().item()
        raise RuntimeError(
            f"{folder}: expected the trained model's logits bit for bit, found them off by up to {worst:.3g}"
        )
    return logits_sha256(logits)


def logits_sha256(logits) -> str:
    """Hex digest of the logits' values as fp32 bytes."""
    return hashlib.sha256(logits.float().cpu().contiguous().numpy().tobytes()).hexdigest()
