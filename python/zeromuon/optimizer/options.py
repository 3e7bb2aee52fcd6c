"""The options of ZeroMuon, each declared once, in one table without torch: what else knows them reads it there.

The constructor's signature and docstring, the tasks of a step, what a load does with a saved value, the keys of
``"type": "Muon"`` and the documents' table all come from :data:`OPTIONS`.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from dataclasses import dataclass
from numbers import Real
from typing import Callable, Iterable

from ..base.words import nearest

# Of products, wire and momentum.
FLOATS = ("float32", "bfloat16")
# momentum_device -> what the core, its plans and files of rates call it
MOMENTUM_HOMES = {"device": "device", "cpu": "shard", "cpu_streamed": "streamed"}
_TRIPLE_LENGTH = 3  # a, b, c of X <- aX + (bA + cAA)X
_BOTH = ("muon", "adamw")


@dataclass(frozen=True)
class Option:
    """One row of the table.

    check: takes the given value and the names of the coefficient sets and returns the normalised value, or
        raises _Refused with what was expected.
    on_load: what a load does when the checkpoint has another value, a key of :data:`ON_LOAD`.
    roles: "muon", "adamw": whose tasks carry it, as a keyword of this name; none: it is no hyper-parameter of the step.
    in_type_muon: whether ``"type": "Muon"`` takes it, too, beside the keys that DeepSpeed's own has.
    excludes: (other, value, why): with that value of the other option, or of DeepSpeed's ``adam_w_mode``, only the
        default is taken.
    """

    name: str
    default: object
    unit: str
    allowed: str
    meaning: str
    check: Callable
    on_load: str
    roles: tuple[str, ...] = ()
    in_type_muon: bool = False
    excludes: tuple[tuple[str, object, str], ...] = ()


ON_LOAD = {
    "refused": "an error: the stored momentum has another meaning",
    "said": "the run's value, with a warning: the arithmetic changes",
    "taken": "the checkpoint's value, with a warning, as torch does with what is in its groups",
    "converted": "the run's value, to which the momentum is converted, with a warning",
    "free": "the run's value",
}


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


def _one_of(*names: str) -> Callable:
    def check(value, _sets):
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


def _choice(name: str, default: str, names: tuple[str, ...], meaning: str, on_load: str, **more) -> Option:
    allowed = ", ".join(f'"{n}"' for n in names)
    return Option(name, default, "", allowed, meaning, _one_of(*names), on_load, **more)


OPTIONS: tuple[Option, ...] = (
    Option(
        "lr",
        1e-3,
        "per optimizer step",
        "at least 0",
        "Learning rate of Muon; with the default scale a good AdamW value.",
        _at_least_zero,
        on_load="taken",
        roles=_BOTH,
    ),
    Option(
        "adam_lr",
        None,
        "per optimizer step",
        "at least 0, or None",
        "Learning rate of AdamW; None means lr. A scheduler moves both: their ratio is kept.",
        _optional(_at_least_zero),
        on_load="taken",
    ),
    Option(
        "momentum",
        0.95,
        "fraction kept per step",
        "[0, 1)",
        "Decay of Muon's momentum.",
        _decay,
        on_load="said",
        roles=("muon",),
    ),
    Option(
        "nesterov",
        True,
        "",
        "True, False",
        "Orthogonalise the look-ahead momentum instead of the momentum itself.",
        _boolean,
        on_load="said",
        roles=("muon",),
    ),
    _choice(
        "momentum_kind",
        "ema",
        ("ema", "heavy_ball"),
        "How the momentum is summed: beta*M + (1-beta)*G, or beta*B + G.",
        on_load="refused",
        roles=("muon",),
    ),
    Option(
        "weight_decay",
        0.0,
        "per lr",
        "at least 0",
        "Decoupled decay of both roles; parameters with fewer than two dimensions are left out, unless their group "
        "names a decay of its own.",
        _at_least_zero,
        on_load="taken",
        roles=_BOTH,
    ),
    Option(
        "cautious_wd",
        False,
        "",
        "True, False",
        "Decay only elements whose update and weight do not disagree in sign (arXiv 2510.12402), in both roles.",
        _boolean,
        on_load="said",
        roles=_BOTH,
        in_type_muon=True,
        excludes=(
            ("cpu_kernels", "onednn", "whose AdamW has no such decay"),
            ("adam_w_mode", False, "where the decay is a part of the gradient"),
        ),
    ),
    Option(
        "betas",
        (0.9, 0.95),
        "fractions kept per step",
        "two numbers in [0, 1)",
        "Decays of AdamW's two moments.",
        _pair_of_decays,
        on_load="said",
        roles=("adamw",),
    ),
    Option(
        "eps",
        1e-8,
        "",
        "at least 0",
        "AdamW: added to the root of the second moment.",
        _at_least_zero,
        on_load="said",
        roles=("adamw",),
    ),
    _choice(
        "scale",
        "match_rms_adamw",
        ("match_rms_adamw", "original", "spectral_unclamped", "none"),
        "Factor of Muon's update: 0.2*sqrt(max(rows, cols)), sqrt(max(1, rows/cols)), sqrt(rows/cols), or 1.",
        on_load="said",
    ),
    Option(
        "ns",
        "jordan",
        "",
        "name of a coefficient set, or a list of (a, b, c) triples",
        "Coefficients of the Newton-Schulz steps, one triple per step.",
        _coefficients,
        on_load="said",
    ),
    _choice(
        "ns_form",
        "auto",
        ("auto", "standard", "gram", "gram_restarts"),
        "Form of Newton-Schulz: on the matrix, on its Gram matrix, or on that taken afresh every other step; auto "
        "decides by shape.",
        on_load="said",
    ),
    _choice(
        "ns_dtype",
        "auto",
        ("auto", *FLOATS),
        "Data type of the factors in Newton-Schulz' products, which are summed in float32; auto is bfloat16 where "
        "the processor has the hardware and it is faster.",
        on_load="said",
        in_type_muon=True,
    ),
    _choice(
        "wire_dtype",
        "auto",
        ("auto", *FLOATS),
        "Data type in which momenta and updates travel between ranks; auto is float32 for float32 "
        "training, else bfloat16.",
        on_load="said",
    ),
    _choice(
        "momentum_device",
        "auto",
        ("auto", *MOMENTUM_HOMES),
        "Where the momentum lives: on the compute device; on the CPU with the shard, and is computed there; or is stored on "
        "the CPU and computed on the device. auto: with the shard, or, where the shard is offloaded, the quickest of the "
        "three by measured rates.",
        on_load="free",
        in_type_muon=True,
    ),
    _choice(
        "momentum_dtype",
        "float32",
        FLOATS,
        "Data type of the stored momentum; bfloat16 halves its bytes and rounds it once per step.",
        on_load="converted",
        in_type_muon=True,
    ),
    _choice(
        "cpu_kernels",
        "auto",
        ("auto", "generic", "avx2", "avx512", "avx512_bf16", "onednn"),
        "Kernels of AdamW, momentum and apply on the CPU; auto is the fused ones for this processor. All but onednn "
        "give the same bits.",
        on_load="free",
        in_type_muon=True,
    ),
    _choice(
        "fused_step",
        "auto",
        ("auto", "on", "off"),
        "Step all sub-groups at once, with unscaling, clipping and the low-precision weights in the same passes; off: one "
        "by one, as DeepSpeed calls. The same bits. auto: where this DeepSpeed allows it; on: an error where not.",
        on_load="free",
        in_type_muon=True,
    ),
    Option(
        "max_bytes_in_flight",
        "auto",
        "bytes per rank",
        '"auto", or above 0',
        "Bound of the buffers through which matrices travel; auto is chosen by the model.",
        _bytes_or_auto,
        on_load="free",
        in_type_muon=True,
    ),
    Option(
        "stage_timeout_s",
        600.0,
        "s",
        "from 0.001 to 1e7",
        "A stage of the step without progress for so long is an error that prints what every lane does.",
        _number("a number from 0.001 to 1e7 (four months)", lambda x: 1e-3 <= x <= 1e7),
        on_load="free",
        in_type_muon=True,
    ),
)

# Those that ``"type": "Muon"`` takes beside DeepSpeed's own keys.
TYPE_MUON_OPTIONS = tuple(option.name for option in OPTIONS if option.in_type_muon)

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
            values that exclude each other. All faults are named at once.
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
    faults += _excluded(values)
    if faults:
        raise ValueError("ZeroMuon options: " + "; ".join(faults))
    return values


def check_together(values: dict) -> None:
    """Raises ValueError when values exclude each other. values: of options, and DeepSpeed's ``adam_w_mode``."""
    if faults := _excluded(values):
        raise ValueError("ZeroMuon options: " + "; ".join(faults))


def _excluded(values: dict) -> list[str]:
    return [
        f"{option.name}: got {values[option.name]!r} together with {other}={excluded!r}, {why}: leave one of them out"
        for option in OPTIONS
        for other, excluded, why in option.excludes
        if values.get(option.name, option.default) != option.default and values.get(other) == excluded
    ]


def hyper_parameters(role: str, options: dict) -> dict:
    """Those of `options` that a step of the role takes, under their names."""
    return {option.name: options[option.name] for option in OPTIONS if role in option.roles}


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
    lines = [
        '| option | default | unit | allowed | meaning | on load | "type": "Muon" |',
        "|---|---|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        default, taken = f"`{_literal(option.default)}`", "takes it" if option.in_type_muon else "-"
        cells = (f"`{option.name}`", default, option.unit or "-", option.allowed, option.meaning, option.on_load, taken)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _literal(value) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _signature() -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = [inspect.Parameter(name, kind) for name in ("self", "params")]
    options = [inspect.Parameter(o.name, kind, default=o.default) for o in OPTIONS]
    return inspect.Signature([*given, *options, inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD)])


_SIGNATURE = _signature()


def declares_options(cls):
    """Class decorator: ``__init__(self, params, *positional, **keywords)`` shows the options in its signature (what it
    does with them: :func:`options_given`), and the line ``{options}`` of the docstring becomes a row for each."""
    cls.__init__.__signature__ = _SIGNATURE
    rows = (f"{o.name} ({o.allowed}{o.unit and '; '}{o.unit}): {o.meaning}" for o in OPTIONS)
    fill = textwrap.TextWrapper(100, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False).fill
    cls.__doc__ = (cls.__doc__ or "").replace("        {options}", "\n".join(map(fill, rows)))
    return cls


def options_given(positional: tuple, keywords: dict) -> dict:
    """Name -> value of what was given after `params`, unknown names too. Raises TypeError as a call does."""
    given = _SIGNATURE.bind(None, None, *positional, **keywords).arguments
    return {k: v for k, v in given.items() if k not in ("self", "params", "unknown")} | given.get("unknown", {})
