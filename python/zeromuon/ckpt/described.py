"""What a model folder says of the tensors of its model: names and shapes. No torch where model files tell it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .arguments import PathLike, encoded, encoded_text
from .reading import inspect

_MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def described_by(folder: PathLike) -> dict:
    """Keyword arguments of the verbs that compare a checkpoint with the model of `folder`, a model folder of Hugging Face.

    By its files; where it has none, by its config.json, if transformers makes that model (on the meta device; imports
    torch). Else nothing is compared.
    """
    described = _of_files(Path(folder)) or _of_config(Path(folder))
    return {
        "described_by": encoded(str(folder), "config_from"),
        "described": [(encoded_text(name, "model"), list(shape), needed) for name, shape, needed in described],
    }


def _of_files(folder: Path) -> list[tuple[str, tuple[int, ...], bool]]:
    if not any((folder / name).is_file() for name in _MODEL_FILES):
        return []
    try:
        found = inspect(folder)
    except ValueError:  # whatever is wrong with weights that nobody asked for
        return []
    return [(t["name"], tuple(t["shape"]), t["role"] != "buffer") for t in found["tensors"]]


def _of_config(folder: Path) -> list[tuple[str, tuple[int, ...], bool]]:
    if find_spec("transformers") is None or find_spec("torch") is None:
        return []
    try:
        model = model_on_meta(folder)
    except Exception:  # whatever a foreign configuration does: then nothing is known of its model
        return []
    once = dict(model.named_parameters())
    shared = [name for name, param in model.named_parameters(remove_duplicate=False) if name not in once]
    tied = {id(model.get_parameter(name)) for name in shared}
    return [
        (name, tuple(value.shape), name in once and id(once[name]) not in tied)
        for name, value in model.state_dict(keep_vars=True).items()
    ]


def model_on_meta(folder: Path):
    """The model that config.json describes, without weights: of its own class, else a masked or causal language model.

    Raises what transformers raises, and ValueError where it is neither.
    """
    import torch
    import transformers

    from ..selection.language_model import auto_class, detect_task

    config = transformers.AutoConfig.from_pretrained(folder)
    own = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        if own is not None:
            return own(config)
        return auto_class(detect_task(config)).from_config(config)
