"""The options of ZeroMuon, each declared once, in one table without torch: what else knows them reads it there.

The constructor's signature and docstring, the tasks of a step, what a load does with a saved value, the keys of
``"type": "Muon"`` and the documents' table all come from :data:`OPTIONS`.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass

from .checks import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    BOOLEAN,
    BYTES_OR_AUTO,
    COEFFICIENTS,
    COUNT_OR_AUTO,
    DECAY,
    FRACTION,
    PAIR_OF_DECAYS,
    Check,
)
from .checks import Refused, nearest_name, number, one_of, optional, or_auto

# Of wire and momentum, and with float16 of products.
FLOATS = ("float32", "bfloat16")
# momentum_device -> what the core, its plans and files of rates call it
MOMENTUM_HOMES = {"device": "device", "cpu": "shard", "cpu_streamed": "streamed"}
# Whose tasks carry an option.
_BOTH, _MUON, _ADAMW = ("muon", "adamw"), ("muon",), ("adamw",)


@dataclass(frozen=True)
class Option:
    """One row of the table.

    on_load: what a load does when the checkpoint has another value, a key of :data:`ON_LOAD`.
    roles: "muon", "adamw": whose tasks carry it, as a keyword of this name; none: it is no hyper-parameter of the step.
    in_groups: whether the parameter groups of those roles carry it, as ``group[name]``: a step takes what stands there.
    in_type_muon: whether ``"type": "Muon"`` takes it, too, beside the keys that DeepSpeed's own has.
    excludes: (other, value, why): with that value of the other option, or of DeepSpeed's ``adam_w_mode``, only the
        default is taken.
    """

    name: str
    default: object
    check: Check
    on_load: str
    roles: tuple[str, ...] = ()
    in_groups: bool = False
    in_type_muon: bool = False
    unit: str = ""
    excludes: tuple[tuple[str, object, str], ...] = ()

    @property
    def allowed(self) -> str:
        return self.check.allowed

    @property
    def meaning(self) -> str:
        return _MEANINGS[self.name]


ON_LOAD = {
    "refused": "an error: the stored momentum has another meaning",
    "said": "the run's value, with a warning: the arithmetic changes",
    "taken": "the checkpoint's value, with a warning, as torch does with what is in its groups",
    "converted": "the run's value, to which the momentum is converted, with a warning",
    "free": "the run's value",
}


_NOT_CAUTIOUS = (
    ("cpu_kernels", "onednn", "whose AdamW has no such decay"),
    ("adam_w_mode", False, "where the decay is a part of the gradient"),
)
_SCALES = ("match_rms_adamw", "original", "spectral_unclamped", "none")
_KERNELS = ("auto", "generic", "avx2", "avx512", "avx512_bf16", "onednn")
_TIMEOUT = number("from 0.001 to 1e7", "a number from 0.001 to 1e7 (four months)", lambda x: 1e-3 <= x <= 1e7)

OPTIONS: tuple[Option, ...] = (
    Option("lr", 1e-3, AT_LEAST_ZERO, "taken", _BOTH, in_groups=True, unit="per optimizer step"),
    Option("adam_lr", None, optional(AT_LEAST_ZERO), "taken", unit="per optimizer step"),
    Option("momentum", 0.95, DECAY, "taken", _MUON, in_groups=True, unit="fraction kept per step"),
    Option("nesterov", True, BOOLEAN, "taken", _MUON, in_groups=True),
    Option("momentum_kind", "ema", one_of("ema", "heavy_ball"), "refused", _MUON),
    Option("weight_decay", 0.0, AT_LEAST_ZERO, "taken", _BOTH, in_groups=True, unit="per lr"),
    Option("cautious_wd", False, BOOLEAN, "said", _BOTH, in_type_muon=True, excludes=_NOT_CAUTIOUS),
    Option("betas", (0.9, 0.95), PAIR_OF_DECAYS, "taken", _ADAMW, in_groups=True, unit="fractions kept per step"),
    Option("eps", 1e-8, AT_LEAST_ZERO, "taken", _ADAMW, in_groups=True),
    Option("scale", "match_rms_adamw", one_of(*_SCALES), "said"),
    Option("ns", "jordan", COEFFICIENTS, "said"),
    Option("ns_form", "auto", one_of("auto", "standard", "gram", "gram_restarts"), "said"),
    Option("ns_dtype", "auto", one_of("auto", *FLOATS, "float16"), "said", in_type_muon=True),
    Option("wire_dtype", "auto", one_of("auto", *FLOATS), "said"),
    Option("qk_clip", False, BOOLEAN, "said", in_type_muon=True),
    Option("qk_clip_threshold", 100.0, ABOVE_ZERO, "said", in_type_muon=True),
    Option("qk_clip_alpha", 0.5, FRACTION, "said", in_type_muon=True),
    Option("qk_clip_statistic", "exact", one_of("exact", "bound"), "said", in_type_muon=True),
    Option("log_max_attention_logit", False, BOOLEAN, "free", in_type_muon=True),
    Option("momentum_device", "auto", one_of("auto", *MOMENTUM_HOMES), "free", in_type_muon=True),
    Option("momentum_dtype", "float32", one_of(*FLOATS), "converted", in_type_muon=True),
    Option("cpu_kernels", "auto", one_of(*_KERNELS), "free", in_type_muon=True),
    Option("fused_step", "auto", one_of("auto", "on", "off"), "free", in_type_muon=True),
    Option("max_bytes_in_flight", "auto", BYTES_OR_AUTO, "free", in_type_muon=True, unit="bytes per rank"),
    Option("cpu_threads", "auto", COUNT_OR_AUTO, "free", in_type_muon=True, unit="threads per rank"),
    Option("stage_timeout_s", "auto", or_auto(_TIMEOUT), "free", in_type_muon=True, unit="s"),
)
_MEANINGS = {
    "lr": "Learning rate of Muon; with the default scale a good AdamW value.",
    "adam_lr": "Learning rate of AdamW; None means lr. One number that a DeepSpeed scheduler writes to all groups keeps "
    "their ratio.",
    "momentum": "Decay of Muon's momentum.",
    "nesterov": "Orthogonalise the look-ahead momentum instead of the momentum itself.",
    "momentum_kind": "How the momentum is summed: beta*M + (1-beta)*G, or beta*B + G.",
    "weight_decay": "Decoupled decay of both roles; parameters with fewer than two dimensions are left out, unless "
    "their group names a decay of its own.",
    "cautious_wd": "Decay only elements whose update and weight do not disagree in sign (arXiv 2510.12402), in both roles.",
    "betas": "Decays of AdamW's two moments.",
    "eps": "AdamW: added to the root of the second moment.",
    "scale": "Factor of Muon's update: 0.2*sqrt(max(rows, cols)), sqrt(max(1, rows/cols)), sqrt(rows/cols), or 1.",
    "ns": "Coefficients of the Newton-Schulz steps, one triple per step.",
    "ns_form": "Form of Newton-Schulz: on the matrix, on its Gram matrix, or on that taken afresh every other step; "
    "auto decides by shape.",
    "ns_dtype": "Data type of the factors in Newton-Schulz' products, which are summed in float32; auto is float32 "
    "for float32 training, else float16 on GPUs and bfloat16 on processors whose family was measured to be faster so.",
    "wire_dtype": "Data type in which momenta and updates travel between ranks; auto is float32 for float32 training, "
    "else bfloat16.",
    "qk_clip": "MuonClip: after each step, shrink the rows of queries and keys of heads whose largest attention logit "
    "passed the threshold (arXiv 2507.20534).",
    "qk_clip_threshold": "The largest logit that QK-Clip lets be.",
    "qk_clip_alpha": "The part of QK-Clip's factor that queries take; keys take the rest.",
    "qk_clip_statistic": "What QK-Clip goes by: the largest logit of the pairs that the mask lets through, or the "
    "product of the largest norms of a query and of a key, a bound that is cheap and clips earlier.",
    "log_max_attention_logit": "Watch the logits without clipping: ZeroMuon.attention_logits().",
    "momentum_device": "Where the momentum lives: on the compute device; on the CPU with the shard, and is computed "
    "there; or is stored on the CPU and computed on the device. auto: with the shard, or, where the shard is offloaded, "
    "the quickest of the three by measured rates.",
    "momentum_dtype": "Data type of the stored momentum; bfloat16 halves its bytes and rounds it once per step.",
    "cpu_kernels": "Kernels of AdamW, momentum and apply on the CPU; auto is the fused ones for this processor. All "
    "but onednn give the same bits.",
    "fused_step": "Step all sub-groups at once, with unscaling, clipping and the low-precision weights in the same "
    "passes; off: one by one, as DeepSpeed calls. The same bits. auto: where this DeepSpeed allows it; on: an error "
    "where not.",
    "max_bytes_in_flight": "Bound of the buffers through which matrices travel; auto is chosen by the model.",
    "cpu_threads": "Threads of a rank's work on the CPU; auto is OMP_NUM_THREADS where that is above 1 (torchrun sets 1), "
    "else the cores of the host shared by its ranks.",
    "stage_timeout_s": "A stage of the step without progress for so long is an error that prints what every lane does. "
    "auto: 600, and with NCCL 240, below the group's timeout, at which its watchdog ends the process.",
}

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
    "qk_clip_tau": "qk_clip_threshold",
}


def option_names() -> list[str]:
    """Names of the options, in the order of the constructor's keywords."""
    return [option.name for option in OPTIONS]


def validate_options(given: dict) -> dict:
    """The options of ZeroMuon, complete and normalised; nothing is changed in place.

    given: option name -> value; an absent option takes its default. Returns a dict in the order of :data:`OPTIONS`:
    numbers as float, betas as a tuple of two, a custom `ns` as a tuple of triples.

    Raises ValueError: an unknown name (names the nearest valid one), a value out of range or of the wrong type, or
    values that exclude each other. All faults are named at once.
    """
    faults = [_unknown_name(name) for name in given if name not in option_names()]
    values = {}
    for option in OPTIONS:
        value = given.get(option.name, option.default)
        try:
            values[option.name] = option.check(value)
        except Refused as refused:
            faults.append(f"{option.name}: got {value!r}, {refused}")
    if values.get("lr") == 0 and values.get("adam_lr") is not None:
        faults.append(
            f"lr: got 0 together with adam_lr={values['adam_lr']!r}, expected lr above 0: the ratio adam_lr/lr is "
            f"what a scheduler keeps; give the peak lr and let the scheduler start at 0"
        )
    _raise_if_any(faults + _excluded(values))
    return values


def group_option_names() -> list[str]:
    """Of the options that stand in parameter groups."""
    return [option.name for option in OPTIONS if option.in_groups]


def plain_number(value):
    """A tensor or array of one element as the number that it is; all else as it is."""
    return value.item() if hasattr(value, "item") else value


def check_together(values: dict) -> None:
    """Raises ValueError when values exclude each other. values: of options, and DeepSpeed's ``adam_w_mode``."""
    _raise_if_any(_excluded(values))


def _raise_if_any(faults: list[str]) -> None:
    if faults:
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


def group_values(role: str, options: dict) -> dict:
    """Those of `options` that a parameter group of the role carries, under their names."""
    return {option.name: options[option.name] for option in OPTIONS if option.in_groups and role in option.roles}


def check_value(name: str, value, where: str = "ZeroMuon options"):
    """The normalised value of one option. Raises ValueError, which begins with `where`, when it is out of range."""
    option = next(o for o in OPTIONS if o.name == name)
    try:
        return option.check(value)
    except Refused as refused:
        raise ValueError(f"{where}: {name}: got {value!r}, {refused}") from None


def _unknown_name(name) -> str:
    nearest = _OTHER_SPELLINGS.get(name) or nearest_name(name, option_names())
    hint = f"did you mean {nearest}?" if nearest else f"the options are {', '.join(option_names())}"
    return f"{name}: unknown option, {hint}"


def options_markdown() -> str:
    """The table of options for the documents, as GitHub markdown; ends with a newline."""
    lines = [
        '| option | default | unit | allowed | meaning | on load | "type": "Muon" |',
        "|---|---|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        default = f'"{option.default}"' if isinstance(option.default, str) else repr(option.default)
        taken = "takes it" if option.in_type_muon else "-"
        cells = (
            f"`{option.name}`",
            f"`{default}`",
            option.unit or "-",
            option.allowed,
            option.meaning,
            option.on_load,
            taken,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
