"""The checkpoints that `zeromuon bench ckpt` converts. torch only where one is made."""

from __future__ import annotations

import functools
import math
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

from ....ranks.launch import Launch
from ..core import interrupt
from ..core.machine import installed
from ..step.launch import environment
from .contenders import Source

RANKS = 2
TAG = "global_step1"
_SMALL_MIB, _SMALL_WIDTH, _WIDTH, _SPARSE_WIDTH = 64, 64, 1024, 8192
_ZEROS = 1 << 24  # bytes that are taken at once
_STATES = ("exp_avg", "exp_avg_sq")


def width_and_layers(mib: int) -> tuple[int, int]:
    """Of a model of at least `mib` MiB of fp32 weights, with matrices of a transformer's shapes."""
    width = _WIDTH if mib >= _SMALL_MIB else _SMALL_WIDTH
    return width, max(1, -(-mib * 2**20 // (4 * 12 * width**2)))


def by_deepspeed(folder: Path, mib: int, log: Path) -> Source:
    """Has DeepSpeed write one, after a step of AdamW on 2 gloo ranks. Raises RuntimeError with its last words."""
    width, layers = width_and_layers(mib)
    given = {"ranks": RANKS, "environment": environment(RANKS), "log": log}
    with Launch(f"{__package__}.save_ranks", folder, width, layers, **given) as ranks:
        status = interrupt.wait(ranks)
    if status != 0:
        raise RuntimeError(f"the ranks that write the checkpoint ended with status {status}; see {log}")
    numel = ranks.told()[0]["numel"]
    words = (
        f"written by DeepSpeed {installed('deepspeed')}: ZeRO-3 on {RANKS} gloo ranks, AdamW after one step, fp32,"
        f" {numel / 1e6:.1f} M parameters in {layers} layers of width {width}"
    )
    return Source(folder, words, 4 * numel)


def given(folder: Path) -> Source:
    """One that is there. Raises ValueError where it is no ZeRO-3 checkpoint."""
    from .... import _ckpt

    found = _ckpt.inspect(str(folder))
    if found["kind"] != "ZeRO-3" or not (folder / "latest").is_file():
        raise ValueError(
            f"zeromuon bench ckpt --checkpoint: expected a folder of ZeRO-3 with the file latest, {folder} is"
            f" {found['kind']}; name another"
        )
    size = sum(math.prod(tensor["shape"]) for tensor in found["tensors"]) * 4
    return Source(folder, f"{folder}, {found['world_size']} ranks, {found['optimizer']}", size)


# ---- a large one without data ------------------------------------------------------------------------------------


def sparse_bytes(weights_bytes: int, width: int = _SPARSE_WIDTH) -> int:
    """Of the whole matrices that have at least that many."""
    return -(-weights_bytes // (4 * width**2)) * 4 * width**2


def sparse(folder: Path, weights_bytes: int, width: int = _SPARSE_WIDTH) -> Source:
    """The files that DeepSpeed would write of weights of at least that size, by torch.save; the tensors are holes, which read
    as zeros. width: of its square matrices; even."""
    import torch

    count = sparse_bytes(weights_bytes, width) // (4 * width**2)
    shapes = OrderedDict((f"layers.{i}.weight", torch.Size((width, width))) for i in range(count))
    (folder / TAG).mkdir(parents=True)
    for rank in range(RANKS):
        _save_sparse(folder / TAG / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", _model_states(shapes))
        optimizer = _optimizer_states(count * width**2 // RANKS)
        _save_sparse(folder / TAG / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", optimizer)
    (folder / "latest").write_text(TAG)
    words = (
        f"synthetic: DeepSpeed's format for {RANKS} ranks and AdamW, sparse files (their tensors are holes),"
        f" {count} matrices of {width} x {width}"
    )
    return Source(folder, words, 4 * count * width**2)


def _model_states(shapes: OrderedDict) -> dict:
    import torch

    return {
        "module": OrderedDict((name, torch.empty(0)) for name in shapes),
        "buffer_names": [],
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "global_steps": 1,
        "dp_world_size": RANKS,
        "ds_version": installed("deepspeed"),
        "ds_config": {"optimizer": {"type": "AdamW"}},
    }


def _optimizer_states(numel: int) -> dict:
    """numel: of a rank's flat tensor."""
    import torch

    state = {"step": 1, **{name: torch.empty(numel) for name in _STATES}}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    return {
        "optimizer_state_dict": {
            "zero_stage": 3,
            "partition_count": RANKS,
            "fp32_flat_groups": [torch.empty(numel)],
            "optimizer_state_dict": {"state": {0: state}, "param_groups": [group]},
        }
    }


def _save_sparse(path: Path, content: dict) -> None:
    import torch

    with torch.serialization.skip_data():
        torch.save(content, path)
    _set_crcs_of_holes(path)


def _set_crcs_of_holes(path: Path) -> None:
    """torch.save leaves 0 there. In the directory's entries, at 16; lengths of name, extra field and comment are at 28."""
    with zipfile.ZipFile(path) as archive:
        entries, at = archive.infolist(), archive.start_dir
    with open(path, "r+b") as file:
        for entry in entries:
            if entry.CRC == 0 and entry.file_size > 0:
                file.seek(at + 16)
                file.write(struct.pack("<I", _crc_of_zeros(entry.file_size)))
            file.seek(at + 28)
            at += 46 + sum(struct.unpack("<3H", file.read(6)))


@functools.cache
def _crc_of_zeros(count: int) -> int:
    zeros, crc = bytes(_ZEROS), 0
    for begin in range(0, count, _ZEROS):
        crc = zlib.crc32(zeros[: count - begin], crc)
    return crc
