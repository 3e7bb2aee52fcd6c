"""The verbs that only read. No torch."""

from __future__ import annotations

from .. import _ckpt
from .arguments import DEFAULT_MEMORY_BYTES, PathLike, Progress, encoded, existing, reading
from .results import Comparison, Inspection, Verification


def inspect(path: PathLike, *, tag: str | None = None) -> Inspection:
    """What a checkpoint holds; no tensor is read.

    Args:
        path: a folder of ZeRO-3, universal, safetensors, pytorch_model.bin or DCP, or a file of safetensors or torch.
        tag: which folder of a ZeRO-3 checkpoint; None: the one that the file `latest` names.

    Raises:
        FormatError: (a ValueError) nothing is there, ranks are missing, tags are mixed, a file is damaged; it has
            the attributes file, offset (bytes, or None), expected, got and remedy.
        ValueError: a tag of a kind that has none.
    """
    return _ckpt.inspect(existing(path), encoded(tag, "tag"))


def verify(
    path: PathLike,
    *,
    tag: str | None = None,
    check_crc: bool = True,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
) -> Verification:
    """Reads everything: all ranks and files there, shapes that add up, no record cut short, CRCs, NaN and Inf.

    Args:
        path, tag: as :func:`inspect`.
        check_crc: compare the CRC-32 of every record of torch files; False saves reading them twice.
        progress: called with (bytes read, bytes in all) at most every 100 ms; what it raises cancels.
        max_memory_bytes: of buffers, at least 1 MiB.
        threads: 0: one per core, at most 16.

    Returns:
        What was found; a damaged checkpoint is a result, not an exception.

    Raises:
        ValueError: nothing is there, or the kind of checkpoint does not go with verify.
    """
    run = reading(progress, max_memory_bytes, threads)
    return _ckpt.verify(existing(path), tag=encoded(tag, "tag"), check_crc=bool(check_crc), **run)


def diff(
    a: PathLike,
    b: PathLike,
    *,
    tag_a: str | None = None,
    tag_b: str | None = None,
    states: bool = True,
    progress: Progress | None = None,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int = 0,
) -> Comparison:
    """Compares two checkpoints by names, across formats and world sizes.

    Values of one dtype are equal when their bits are, of two dtypes when the numbers are.

    Args:
        a, b: as `path` of :func:`inspect`.
        tag_a, tag_b: their tags.
        states: compare optimizer states, too, where both have them.
        progress, max_memory_bytes, threads: as :func:`verify`.

    Raises:
        FormatError: (a ValueError) one of them cannot be read.
        ValueError: a kind of checkpoint that does not go with diff.
    """
    run = reading(progress, max_memory_bytes, threads)
    return _ckpt.diff(
        existing(a, "a"),
        existing(b, "b"),
        tag_a=encoded(tag_a, "tag_a"),
        tag_b=encoded(tag_b, "tag_b"),
        states=bool(states),
        **run,
    )
