"""The verbs that write. Every output has a temporary name until it is whole and on disk. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import _ckpt
from .arguments import (
    DEFAULT_MEMORY_BYTES,
    PathLike,
    Progress,
    encoded,
    encoded_text,
    existing,
    patterns,
    require_whole,
    text_of,
    writing,
)
from .config_files import ConfigFiles
from .described import described_by
from .results import Written
from .roles import roles_of_model


def export(
    path: PathLike,
    output: PathLike,
    *,
    tag: str | None = None,
    format: str = "safetensors",
    dtype: str | None = None,
    dtype_for: Mapping[str, str] | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    max_shard_bytes: int = 5_000_000_000,
    config_from: PathLike | None = None,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
    force: bool = False,
    resume: bool = False,
) -> Written:
    """Writes the weights of any kind of checkpoint as safetensors or as one torch file; tied weights once.

    Args:
        path: a checkpoint, as in :func:`inspect`.
        output: a folder; for torch a file name (.pt, .bin, .pth) is taken, too.
        tag: which folder of a ZeRO-3 checkpoint; None: the latest.
        format: "safetensors" (model.safetensors, or shards with an index) or "torch" (pytorch_model.bin).
        dtype: "float32", "bfloat16", "float16" or "float64" for all trained floating tensors; None: as stored, which
            is fp32 for ZeRO-3. Frozen weights and buffers keep their own.
        dtype_for: shell pattern of names -> dtype, before `dtype`; the first that matches wins. It reaches frozen
            weights and buffers, too.
        include: patterns of names; none: all.
        exclude: patterns of names to leave out; beats `include`.
        max_shard_bytes: of one safetensors file; 0: one file, however large.
        config_from: a Hugging Face model folder whose config.json and tokenizer files are copied beside the weights. Its
            model must have the same tensors: by its files, else by its config.json where transformers is installed.
        progress, max_memory_bytes, threads: as in :func:`verify`.
        force: replace outputs that exist.
        resume: keep what an interrupted run of the same export has finished.

    Raises:
        FormatError: (a ValueError) an input is damaged, an output exists, the disk is full or read-only.
        ValueError: bad options.
    """
    source, target = existing(path), _output(output)
    config = ConfigFiles(config_from, output, force) if config_from is not None else None
    described = described_by(config_from) if config else {}
    dtypes = [tuple(encoded_text(text, "dtype_for") for text in pair) for pair in (dtype_for or {}).items()]
    out = _ckpt.export_weights(
        source,
        target,
        tag=encoded(tag, "tag"),
        format=encoded_text(format, "format"),
        dtype=encoded_text(dtype, "dtype"),
        dtype_patterns=dtypes,
        include=patterns(include, "include"),
        exclude=patterns(exclude, "exclude"),
        max_shard_bytes=require_whole("max_shard_bytes", max_shard_bytes, 0),
        **described,
        **writing(progress, max_memory_bytes, threads, force, resume),
    )
    if config:
        out["files"] = [*out["files"], *config.copy()]
    return out


def reshard(
    path: PathLike,
    output: PathLike,
    world_size: int,
    *,
    tag: str | None = None,
    sub_group_size: int = 0,
    new_tag: str | None = None,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
    force: bool = False,
    resume: bool = False,
) -> Written:
    """Writes a ZeRO-3 checkpoint for another number of ranks, from which DeepSpeed resumes with optimizer state.

    Args:
        path: a ZeRO-3 or a universal checkpoint.
        output: the folder that gets `tag`/ and `latest`.
        world_size: ranks, at least 1.
        tag: which folder of the source; None: the latest.
        sub_group_size: elements per rank at which a sub-group closes; 0: as the checkpoint's configuration says.
        new_tag: of the output; None: that of the source.
        progress, max_memory_bytes, threads, force, resume: as in :func:`export`.

    Raises:
        FormatError, ValueError: as :func:`export`; ValueError for a kind of checkpoint that has no ranks.
    """
    return _ckpt.reshard(
        existing(path),
        _output(output),
        require_whole("world_size", world_size, 1),
        tag=encoded(tag, "tag"),
        sub_group_size=require_whole("sub_group_size", sub_group_size, 0),
        new_tag=encoded(new_tag, "new_tag"),
        **writing(progress, max_memory_bytes, threads, force, resume),
    )


def universal(
    path: PathLike,
    output: PathLike,
    *,
    tag: str | None = None,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
    force: bool = False,
    resume: bool = False,
) -> Written:
    """Writes DeepSpeed's universal checkpoint of a ZeRO-3 checkpoint, without temporary files.

    Args:
        path: a ZeRO-3 checkpoint.
        output: the folder itself; `latest_universal` is written beside it.
        tag: which folder of the source; None: the latest.
        progress, max_memory_bytes, threads, force, resume: as in :func:`export`.

    Raises:
        FormatError, ValueError: as :func:`export`.
    """
    return _ckpt.universal(
        existing(path),
        _output(output),
        tag=encoded(tag, "tag"),
        **writing(progress, max_memory_bytes, threads, force, resume),
    )


def convert_optimizer(
    path: PathLike,
    output: PathLike,
    to: str,
    *,
    tag: str | None = None,
    momentum_kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    model: PathLike | None = None,
    numbers: Mapping[str, float] | None = None,
    new_tag: str | None = None,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
    force: bool = False,
    resume: bool = False,
) -> Written:
    """Writes a ZeRO-3 or universal checkpoint for another optimizer: AdamW <-> ZeroMuon, EMA <-> heavy ball.

    Args:
        path: a checkpoint of AdamW, of ZeroMuon or of DeepSpeed's Muon.
        output: as in :func:`reshard`, or of :func:`universal` for a universal checkpoint.
        to: "ZeroMuon" or "AdamW".
        tag: which folder of the source; None: the latest.
        momentum_kind: of ZeroMuon, "ema" or "heavy_ball"; None: as in the source, "ema" from AdamW.
        roles: tensor name -> "muon" or "adamw"; needed from AdamW, see :func:`read_roles` and :func:`roles_of_model`.
        model: in place of roles, the Hugging Face model folder that is asked for them; its tensors must be the
            checkpoint's. Imports torch.
        numbers: any of lr, adam_lr, momentum, beta1, beta2, eps, weight_decay, in place of what the source says.
        new_tag: of the output; None: that of the source.
        progress, max_memory_bytes, threads, force, resume: as in :func:`export`.

    Returns:
        `notes` say what the learning rate should become, what was reset, and what the configuration needs.

    Raises:
        FormatError, ValueError: as :func:`export`; ValueError for roles that leave parameters out or do not fit.
    """
    if roles is not None and model is not None:
        raise ValueError("roles and model: got both, expected one; the model says its roles")
    described = {}
    if model is not None:
        roles, described = roles_of_model(model), described_by(model)
    return _ckpt.convert_optimizer(
        existing(path),
        _output(output),
        encoded_text(to, "to"),
        tag=encoded(tag, "tag"),
        momentum_kind=encoded_text(momentum_kind, "momentum_kind"),
        roles={_name(name): encoded_text(role, "roles") for name, role in (roles or {}).items()},
        numbers={name: float(value) for name, value in (numbers or {}).items()},
        new_tag=encoded(new_tag, "new_tag"),
        **described,
        **writing(progress, max_memory_bytes, threads, force, resume),
    )


def _output(path: PathLike) -> bytes:
    return encoded(text_of(path, "output"), "output")


def _name(name: str) -> bytes:
    """The name of a tensor as a pickle keeps it."""
    if not isinstance(name, str):
        raise ValueError(f"roles: got the name {name!r}, expected the name of a tensor")
    return name.encode("utf-8", "surrogatepass")
