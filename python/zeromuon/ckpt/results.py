"""What the functions of zeromuon.ckpt return: plain dicts, which go into JSON as they are. No torch."""

from __future__ import annotations

from typing import TypedDict


class TensorInfo(TypedDict):
    """One stored tensor."""

    name: str
    role: str  # "muon", "adamw", "frozen", "buffer", or "" where the checkpoint does not say
    dtype: str  # of the stored values: fp32 master weights in ZeRO-3 and universal checkpoints
    shape: tuple[int, ...]
    bytes: int  # of the values, without the states
    states: dict[str, str]  # "exp_avg", "exp_avg_sq", "momentum_buffer" -> dtype
    sub_group: int | None  # of ZeRO-3


class Inspection(TypedDict):
    """A checkpoint as a whole."""

    kind: str  # "ZeRO-3", "universal", "safetensors", "torch" or "DCP"
    path: str  # as it was asked for
    folder: str  # where the files lie
    tag: str
    world_size: int  # 0: not sharded
    optimizer: str  # "AdamW", "ZeroMuon", "Muon (DeepSpeed)", another, or ""
    momentum_kind: str  # "ema", "heavy_ball" or ""
    facts: dict[str, str]  # step counters, versions, dtype: what the checkpoint says
    tensors: list[TensorInfo]
    aliases: dict[str, str]  # tied name -> name of the stored tensor
    sub_groups: int
    files: list[str]
    warnings: list[str]
    verbs: list[str]  # that go with this kind


class Problem(TypedDict):
    """Something that is wrong with a file."""

    file: str  # path; inside an archive "path: record"
    offset: int | None  # bytes from the beginning of the file; None: about the file as a whole
    expected: str
    got: str
    remedy: str
    text: str  # all of it in one line


class TensorHealth(TypedDict):
    """The values of one tensor or of one of its states; padding is not looked at."""

    name: str
    part: str  # "value", "exp_avg", ...
    nan: int  # elements
    infinite: int  # elements
    norm: float  # Euclidean, of the finite elements, summed in fp64


class Verification(TypedDict):
    """ok: no problem was found."""

    ok: bool
    problems: list[Problem]
    tensors: list[TensorHealth]
    bytes_read: int


class Difference(TypedDict):
    """One tensor or state that differs between two checkpoints."""

    name: str
    part: str
    reason: str  # "shape", "dtype" (with equal values) or "values"
    in_a: str  # shape or dtype
    in_b: str
    different: int  # elements
    max_abs: float
    max_rel: float  # of |a - b| / max(|a|, |b|)


class Comparison(TypedDict):
    """same: nothing differs, and nothing is in one only."""

    same: bool
    only_in_a: list[str]  # "name" or "name: state"
    only_in_b: list[str]
    differences: list[Difference]
    compared: int  # tensors and states
    equal: int


class Written(TypedDict):
    """What a verb wrote."""

    files: list[str]
    bytes_written: int  # of tensors, by this run
    tensors: int
    aliases: dict[str, str]  # tied names and the tensors that stand for them
    notes: list[str]  # what was reset, repeated or left out, and what follows for the next run
    kept_files: int  # finished by the run that was resumed
