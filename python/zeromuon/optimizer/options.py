"""The options of ZeroMuon: names, defaults, units, allowed values and meaning, in one table without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Callable, Iterable

from ..base.words import nearest

_TRIPLE_LENGTH = 3  # a, b, c of X <- aX + (bA + cAA)X


@dataclass(frozen=True)
class Option:
    """One row of the table.

    check: takes the given value and the names of the coefficient sets and returns the normalised value, or
    raises _Refused with what was expected. later: values that a later version brings.
    """

    name: str
    default: object
    unit: str
    allowed: str
    meaning: str
    check: Callable
    later: tuple[str, ...] = ()


class _Refused(Exception):
    """What was expected of a value, and optionally what to do."""


def _number(expected: str, accepts: Callable[[float], bool]) -> Callable:
    def check(value, _sets):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _Refused(f"expected a number ({expected})")
        if not math.isfinite(value) or not accepts(value):
            raise _Refused(f"expected {expected}")
        return float(value)

    return check


_at_least_zero = _number("a finite number of at least 0", lambda x: x >= 0)
_above_zero = _number("a finite number above 0", lambda x: x > 0)
_decay = _number("a number in [0, 1)", lambda x: 0 <= x < 1)


def _optional(inner: Callable) -> Callable:
    return lambda value, sets: None if value is None else inner(value, sets)


def _boolean(value, _sets) -> bool:
    if not isinstance(value, bool):
        raise _Refused("expected True or False")
    return value


def _bytes_or_auto(value, _sets):
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**62:
        raise _Refused('expected "auto" or a whole number of bytes from 1 to 2**62')
    return value


def _pair_of_decays(value, sets) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _Refused("expected two numbers in [0, 1)")
    return tuple(_decay(beta, sets) for beta in value)


def _one_of(*names: str, later: tuple[str, ...] = ()) -> Callable:
    def check(value, _sets):
        if isinstance(value, str) and value in later:
            raise _Refused(f"which is not available in this version: use {_quoted(names)}")
        if not isinstance(value, str) or value not in names:
            raise _Refused(f"expected {_quoted(names)}{_did_you_mean(value, names)}")
        return value

    return check


def _coefficients(value, sets: Callable[[], Iterable[str]]):
    if isinstance(value, str):
        names = list(sets())
        if value not in names:
            raise _Refused(f"expected a list of (a, b, c) triples or {_quoted(names)}{_did_you_mean(value, names)}")
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise _Refused("expected the name of a coefficient set or a list of at least one (a, b, c) triple")
    return tuple(_triple(triple, index) for index, triple in enumerate(value))


def _triple(triple, index: int) -> tuple[float, float, float]:
    if not isinstance(triple, (list, tuple)) or len(triple) != _TRIPLE_LENGTH:
        raise _Refused(f"expected three numbers (a, b, c) in triple {index}, which is {triple!r}")
    finite = _number("", lambda x: True)
    try:
        return tuple(finite(x, None) for x in triple)
    except _Refused:
        raise _Refused(f"expected three finite numbers (a, b, c) in triple {index}, which is {triple!r}") from None


def _choice(name: str, default: str, names: tuple[str, ...], meaning: str, later: tuple[str, ...] = ()) -> Option:
    return Option(name, default, "", ", ".join(f'"{n}"' for n in names), meaning, _one_of(*names, later=later), later)


OPTIONS: tuple[Option, ...] = (
    Option(
        "lr",
        1e-3,
        "per optimizer step",
        "at least 0",
        "Learning rate of Muon; with the default scale a good AdamW value.",
        _at_least_zero,
    ),
    Option(
        "adam_lr",
        None,
        "per optimizer step",
        "at least 0, or None",
        "Learning rate of AdamW; None means lr. A scheduler moves both: their ratio is kept.",
        _optional(_at_least_zero),
    ),
    Option("momentum", 0.95, "fraction kept per step", "[0, 1)", "Decay of Muon's momentum.", _decay),
    Option(
        "nesterov",
        True,
        "",
        "True, False",
        "Orthogonalise the look-ahead momentum instead of the momentum itself.",
        _boolean,
    ),
    _choice(
        "momentum_kind", "ema", ("ema", "heavy_ball"), "How the momentum is summed: beta*M + (1-beta)*G, or beta*B + G."
    ),
    Option(
        "weight_decay",
        0.0,
        "per lr",
        "at least 0",
        "Decoupled decay of both roles; parameters with fewer than two dimensions are left out.",
        _at_least_zero,
    ),
    Option(
        "betas",
        (0.9, 0.95),
        "fractions kept per step",
        "two numbers in [0, 1)",
        "Decays of AdamW's two moments.",
        _pair_of_decays,
    ),
    Option("eps", 1e-8, "", "at least 0", "AdamW: added to the root of the second moment.", _at_least_zero),
    _choice(
        "scale",
        "match_rms_adamw",
        ("match_rms_adamw", "original", "spectral_unclamped", "none"),
        "Factor of Muon's update: 0.2*sqrt(max(rows, cols)), sqrt(max(1, rows/cols)), sqrt(rows/cols), or 1.",
    ),
    Option(
        "ns",
        "jordan",
        "",
        "name of a coefficient set, or a list of (a, b, c) triples",
        "Coefficients of the Newton-Schulz steps, one triple per step.",
        _coefficients,
    ),
    _choice(
        "ns_form",
        "auto",
        ("auto", "standard", "gram", "gram_restarts"),
        "Form of Newton-Schulz: on the matrix, on its Gram matrix, or on that taken afresh every other step; auto "
        "decides by shape.",
    ),
    _choice(
        "ns_dtype",
        "auto",
        ("auto", "float32", "bfloat16"),
        "Data type of the factors in Newton-Schulz' products, which are summed in float32; auto is bfloat16 where "
        "the processor has the hardware and it is faster.",
        later=("float16",),
    ),
    _choice(
        "wire_dtype",
        "auto",
        ("auto", "float32", "bfloat16"),
        "Data type in which momenta and updates travel between ranks; auto is float32 for float32 "
        "training, else bfloat16.",
    ),
    _choice(
        "momentum_device",
        "auto",
        ("auto", "device", "cpu", "cpu_streamed"),
        "Where the momentum lives: on the compute device; on the CPU with the shard, and is computed there; or is stored on "
        "the CPU and computed on the device. auto: with the shard, or, where the shard is offloaded, the quickest of the "
        "three by measured rates.",
    ),
    _choice(
        "momentum_dtype",
        "float32",
        ("float32", "bfloat16"),
        "Data type of the stored momentum; bfloat16 halves its bytes and rounds it once per step.",
    ),
    _choice(
        "cpu_kernels",
        "auto",
        ("auto", "generic", "avx2", "avx512", "avx512_bf16", "onednn"),
        "Kernels of AdamW, momentum and apply on the CPU; auto is the fused ones for this processor. All but onednn "
        "give the same bits.",
    ),
    _choice(
        "fused_step",
        "auto",
        ("auto", "on", "off"),
        "Step all sub-groups at once, with unscaling, clipping and the low-precision weights in the same passes; off: one "
        "by one, as DeepSpeed calls. The same bits. auto: where this DeepSpeed allows it; on: an error where not.",
    ),
    Option(
        "max_bytes_in_flight",
        "auto",
        "bytes per rank",
        '"auto", or above 0',
        "Bound of the buffers through which matrices travel; auto is chosen by the model.",
        _bytes_or_auto,
    ),
    Option(
        "stage_timeout_s",
        600.0,
        "s",
        "from 0.001 to 1e7",
        "A stage of the step without progress for so long is an error that prints what every lane does.",
        _number("a number from 0.001 to 1e7 (four months)", lambda x: 1e-3 <= x <= 1e7),
    ),
)

# Spellings of other optimizers that no distance between strings leads home.
_OTHER_SPELLINGS = {
    "muon_lr": "lr",
    "adamw_lr": "adam_lr",
    "ns_method": "ns",
    "beta1": "betas",
    "beta2": "betas",
    "beta": "momentum",
    "mu": "momentum",
    "wd": "weight_decay",
}


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` most resembles, or None when none is close (difflib ratio below 0.5, case ignored)."""
    return nearest(str(name).lower(), valid, cutoff=0.5)


def option_names() -> list[str]:
    """Names of the options, in the order of the constructor's keywords."""
    return [option.name for option in OPTIONS]


def validate_options(given: dict, coefficient_sets: Callable[[], Iterable[str]] | None = None) -> dict:
    """The options of ZeroMuon, complete and normalised; nothing is changed in place.

    Args:
        given: option name -> value; an absent option takes its default.
        coefficient_sets: returns the names that `ns` may have; None asks the compiled core.

    Returns a dict in the order of :data:`OPTIONS`: numbers as float, betas as a tuple of two, a custom `ns` as a
    tuple of triples.

    Raises:
        ValueError: an unknown name (names the nearest valid one), a value out of range or of the wrong type, or
            a value of a later version. All faults are named at once.
    """
    sets = coefficient_sets or _core_coefficient_sets
    faults = [_unknown_name(name) for name in given if name not in option_names()]
    values = {}
    for option in OPTIONS:
        value = given.get(option.name, option.default)
        try:
            values[option.name] = option.check(value, sets)
        except _Refused as refused:
            faults.append(f"{option.name}: got {value!r}, {refused}")
    if values.get("lr") == 0 and values.get("adam_lr") is not None:
        faults.append(
            f"lr: got 0 together with adam_lr={values['adam_lr']!r}, expected lr above 0: the ratio adam_lr/lr is "
            f"what a scheduler keeps; give the peak lr and let the scheduler start at 0"
        )
    if faults:
        raise ValueError("ZeroMuon options: " + "; ".join(faults))
    return values


def check_value(name: str, value, where: str = "ZeroMuon options"):
    """The normalised value of one option. Raises ValueError, which begins with `where`, when it is out of range."""
    option = next(o for o in OPTIONS if o.name == name)
    try:
        return option.check(value, _core_coefficient_sets)
    except _Refused as refused:
        raise ValueError(f"{where}: {name}: got {value!r}, {refused}") from None


def _core_coefficient_sets() -> list[str]:
    from .. import _core

    return _core.coefficient_sets()


def _unknown_name(name) -> str:
    nearest = _OTHER_SPELLINGS.get(name) or nearest_name(name, option_names())
    hint = f"did you mean {nearest}?" if nearest else f"the options are {', '.join(option_names())}"
    return f"{name}: unknown option, {hint}"


def _did_you_mean(value, names: Iterable[str]) -> str:
    nearest = nearest_name(value, names) if isinstance(value, str) else None
    return f"; did you mean {nearest!r}?" if nearest else ""


def _quoted(names: Iterable[str]) -> str:
    *first, last = [f'"{name}"' for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def options_markdown() -> str:
    """The table of options for the documents, as GitHub markdown; ends with a newline."""
    lines = ["| option | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
    for option in OPTIONS:
        allowed = option.allowed + (f" (later: {', '.join(option.later)})" if option.later else "")
        cells = (f"`{option.name}`", f"`{_literal(option.default)}`", option.unit or "-", allowed, option.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _literal(value) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
