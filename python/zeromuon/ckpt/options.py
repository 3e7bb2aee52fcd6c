"""The options of `zeromuon ckpt VERB`. No torch."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

from ..base.parser import Parser
from .arguments import DEFAULT_MEMORY_BYTES, MOST_THREADS

NUMBERS = ("lr", "adam_lr", "momentum", "beta1", "beta2", "eps", "weight_decay")
_UNITS = {
    "": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


@dataclass(frozen=True)
class Verb:
    """One verb of the command line. purpose: of the usage; add: its options beside PATH."""

    purpose: str
    add: object  # (parser) -> None
    writes: bool = False
    two_inputs: bool = False


def parser_of(name: str) -> Parser:
    """The parser of the verb `name`. What it gives is named as the arguments of the verb's function, but for what
    command.py takes out."""
    verb = VERBS[name]
    parser = Parser(prog=f"zeromuon ckpt {name}", description=verb.purpose + ".")
    add = parser.add_argument
    for path in ("a", "b") if verb.two_inputs else ("path",):
        add(path, metavar=path.upper(), help="folder or file of a checkpoint or model")
    add("--tag", type=tag_name, help="which folder of a ZeRO-3 checkpoint (default: the one that `latest` names)")
    if verb.writes:
        add("-o", "--output", metavar="DIR", required=True, help="what to write")
    else:
        add("--json", action="store_true", help="print JSON")
    verb.add(parser)
    if name != "inspect":
        _add_run(parser, verb.writes)
    return parser


def _add_run(parser: Parser, writes: bool) -> None:
    add = parser.add_argument
    size = {"type": buffers, "default": DEFAULT_MEMORY_BYTES, "metavar": "SIZE", "dest": "max_memory_bytes"}
    add("--max-memory", **size, help="bytes of buffers, e.g. 64MB or 64MiB (default: 256MiB)")
    add(
        "--threads",
        type=whole(0, MOST_THREADS),
        default=0,
        metavar="N",
        help="0: one per core, at most 16 (default: 0)",
    )
    add("-q", "--quiet", action="store_true", help="no progress")
    if writes:
        add("--force", action="store_true", help="replace outputs that exist")
        add("--resume", action="store_true", help="keep what an interrupted run of this very command has finished")


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="a row for every tensor; alike ones are not folded")


def _add_verify(parser: Parser) -> None:
    add = parser.add_argument
    add("--all", action="store_true", help="the norm of every tensor and state, not the ten largest")
    add("--no-crc", dest="check_crc", action="store_false", help="do not compare the CRC of every record")


def _add_diff(parser: Parser) -> None:
    add = parser.add_argument
    add("--tag-a", type=tag_name, metavar="TAG", help="tag of A alone")
    add("--tag-b", type=tag_name, metavar="TAG", help="tag of B alone")
    add("--no-states", dest="states", action="store_false", help="compare weights only")


def _add_export(parser: Parser) -> None:
    add = parser.add_argument
    add("--format", choices=("safetensors", "torch"), default="safetensors", help="(default: safetensors)")
    add("--dtype", help="float32, bfloat16, float16 or float64, for all trained weights (default: as stored)")
    again = {"action": "append", "default": []}
    first_wins = "dtype of the tensors whose names match; may be given again, the first that matches wins"
    add("--dtype-for", metavar="GLOB=DTYPE", type=dtype_for, **again, help=first_wins)
    add("--include", metavar="GLOB", **again, help="only these tensors; may be given again")
    add("--exclude", metavar="GLOB", **again, help="not these tensors; may be given again")
    size = {"type": byte_count, "default": 5 * 10**9, "metavar": "SIZE", "dest": "max_shard_bytes"}
    add("--max-shard-size", **size, help="bytes of a safetensors file; 0: one file (default: 5GB)")
    add("--config-from", metavar="FOLDER", help="copy config.json and the tokenizer of this model folder")


def _add_reshard(parser: Parser) -> None:
    add = parser.add_argument
    as_it_was = "elements per rank of a sub-group (default: as the checkpoint's configuration says)"
    add("--world-size", type=whole(1, 65536), required=True, metavar="N", help="ranks of the output")
    add("--sub-group-size", type=whole(1), default=0, metavar="N", help=as_it_was)
    _add_new_tag(parser)


def _add_new_tag(parser: Parser) -> None:
    given = {"type": tag_name, "metavar": "TAG"}
    parser.add_argument("--new-tag", **given, help="tag of the output (default: that of the input)")


def _add_convert(parser: Parser) -> None:
    add = parser.add_argument
    add("--to", required=True, choices=("AdamW", "ZeroMuon"))
    add("--momentum-kind", choices=("ema", "heavy_ball"), help="of ZeroMuon (default: as in the input, else ema)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--roles", metavar="FILE", help="who gets Muon: a file of zeromuon.param_groups(model).save()")
    source.add_argument("--model", metavar="PATH", help="who gets Muon: asks this Hugging Face model (imports torch)")
    for name in NUMBERS:
        add(f"--{name.replace('_', '-')}", type=number, metavar="X", help="instead of what the checkpoint says")
    _add_new_tag(parser)


VERBS = {
    "inspect": Verb("What a checkpoint holds: kind, ranks, optimizer, steps, tensors", _add_inspect),
    "verify": Verb("Reads everything: missing files, damage, CRCs, NaN, Inf and norms", _add_verify),
    "diff": Verb("Compares two checkpoints by names, across formats and world sizes", _add_diff, two_inputs=True),
    "export": Verb("Writes the weights as safetensors or as a torch file", _add_export, writes=True),
    "reshard": Verb("Writes a ZeRO-3 checkpoint for another number of ranks", _add_reshard, writes=True),
    "universal": Verb("Writes DeepSpeed's universal checkpoint", lambda parser: None, writes=True),
    "convert-optimizer": Verb(
        "Turns states of AdamW into ZeroMuon's or back, EMA into heavy ball or back", _add_convert, writes=True
    ),
}


# ---- values --------------------------------------------------------------------------------------


def byte_count(text: str) -> int:
    """ "5GB" is 5e9, "5GiB" 5 * 2^30; without a unit bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)", text.strip(), re.ASCII)
    unit = match and _UNITS.get(match[2].upper().removesuffix("B") + "B" if match[2] else "")
    if not unit:
        raise argparse.ArgumentTypeError(f'got "{text}", expected a size such as 5GB, 256MiB or a number of bytes')
    count = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if count == 0 and float(match[1]) > 0:
        raise argparse.ArgumentTypeError(
            f'got "{text}", expected a whole number of bytes, of which this is less than one'
        )
    return count


def buffers(text: str) -> int:
    """As byte_count(), of at least 1 MiB."""
    count = byte_count(text)
    if count < 1 << 20:
        raise argparse.ArgumentTypeError(f'got "{text}", expected at least 1MiB')
    return count


def tag_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(
            'got "", expected the name of a folder of the checkpoint, as in `latest`; without'
            " this option the default is taken"
        )
    return text


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'got "{text}", expected a finite number of at least 0')
    return value


def whole(least: int, most: int = 10**18 - 1):
    """A parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
            bounds = f"of at least {least}" + ("" if most == 10**18 - 1 else f" and at most {most}")
            raise argparse.ArgumentTypeError(f'got "{text}", expected a whole number {bounds}')
        return int(text)

    return parse


def dtype_for(text: str) -> tuple[str, str]:
    """(pattern, dtype) of "PATTERN=DTYPE"."""
    pattern, separator, dtype = text.rpartition("=")
    if not (separator and pattern and dtype):
        raise argparse.ArgumentTypeError(f'got "{text}", expected GLOB=DTYPE, e.g. *.norm.*=float32')
    return pattern, dtype
