"""Which parameters get Muon, for checkpoints that do not say it. No torch until a model is named."""

from __future__ import annotations

import json
from pathlib import Path

from .arguments import PathLike, text_of

ROLES = ("muon", "adamw")
_LIMIT_BYTES = 64 << 20  # of a roles file: about 400,000 parameters


def read_roles(path: PathLike) -> dict[str, str]:
    """Tensor name -> "muon" or "adamw", from a file that ``zeromuon.param_groups(model).save(path)`` wrote.

    Raises ValueError if it is not one.
    """
    document = _parsed(file := Path(text_of(path, "roles")))
    listed = document.get("parameters") if isinstance(document, dict) else None
    if not isinstance(listed, list) or document.get("format") != 1:
        raise _not_roles(file, 'no "parameters" of format 1')
    roles: dict[str, str] = {}
    for number, entry in enumerate(listed):
        name, role = (entry.get("name"), entry.get("role")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or role not in ROLES:
            raise _not_roles(file, f"parameter {number} with name {name!r} and role {role!r}")
        if name in roles:
            raise _not_roles(file, f'"{name}" twice')
        roles[name] = role
    return roles


def _parsed(file: Path):
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise _not_roles(file, f"{file.stat().st_size} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"roles {file}: expected a file that can be read, got: {error.strerror}; check the path"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_roles(file, f"no JSON ({error})") from None


def _not_roles(file: Path, got: str) -> ValueError:
    return ValueError(
        f"roles {file}: expected the file that zeromuon.param_groups(model).save(FILE) writes, got {got}; write it anew"
    )


def roles_of_model(path: PathLike) -> dict[str, str]:
    """Tensor name -> role, as zeromuon's own selection decides for a Hugging Face model; no weight is loaded.

    Imports torch and transformers. path: a model folder with config.json.

    Raises ValueError if there is no such model or it is neither a masked nor a causal language model.
    """
    folder = Path(text_of(path, "model"))
    if not (folder / "config.json").is_file():
        raise ValueError(f"model {folder}: expected a folder with config.json, got none there; check the path")
    import torch
    from transformers import AutoConfig

    from ..selection.language_model import auto_class, detect_task
    from ..selection.rules import roles_for

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, KeyError) as error:
        raise ValueError(f"model {folder}: expected a configuration of transformers, got: {error}") from error
    with torch.device("meta"):
        model = auto_class(detect_task(config)).from_config(config)
    return {spec.name: spec.role for spec in roles_for(model).values()}
