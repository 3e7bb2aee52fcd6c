"""What is compared: one row per defect that DeepSpeed's own Muon has or had under ZeRO-3. No torch."""

from __future__ import annotations

from dataclasses import dataclass

DEEPSPEED, OURS = "deepspeed", "zeromuon"
SYSTEMS = (DEEPSPEED, OURS)


@dataclass(frozen=True)
class Row:
    """One row. name: of the function that measures it, and on the command line. defect: as it is called when it is
    live. measured: the figure. bar: the largest figure without the defect; `None` stands for :data:`WEIGHTS`. unit: how
    figure and bar are printed (a format of Python's)."""

    name: str
    defect: str
    measured: str
    bar: float | None = None
    unit: str = ".1e"


# 2e-6 * max(1, largest weight of the reference); the largest weight of these models is below 1.
WEIGHTS = 2e-6

ROWS = (
    Row("accumulation", "Newton-Schulz once per micro-batch", "weights off the reference, accumulation 4"),
    Row("reduce_bucket", "a parameter larger than reduce_bucket_size gets no Newton-Schulz",
        "weights off the reference, bucket smaller than a matrix"),
    Row("zero_init", "under zero.Init no parameter gets Muon", "Muon parameters missing under zero.Init", 0, ".0f"),
    Row("mixed_shapes", "matrices of different shapes crash on gloo",
        "weights off the reference, square, tall and wide matrices"),
    Row("clip", "clipping acts on the orthogonalised update", "weights off the reference, clipping at 0.05"),
    Row("clip_norm", "the reported gradient norm is that of the update", "reported norm off the raw norm, relative", 1e-5),
    Row("reduce_scatter", "reduce_scatter: true, the default, is refused",
        "weights off the reference, reduce_scatter left at its default"),
    Row("bf16_momentum", "the momentum is kept in the communication dtype",
        "momentum off fp32, relative, 30 bf16 steps", 1e-6),
    Row("fp16_underflow", "fp16 with CPU offload: small momenta underflow to zero",
        "momentum elements lost to zero at small losses", 0, ".1%"),
    Row("fp16_scale", "fp16: the momentum mixes gradients of different loss scales",
        "1 - cosine of the momentum with that of unscaled gradients", 1e-6),
    Row("offload_repeats", "CPU offload repeats every Newton-Schulz on every rank",
        "Newton-Schulz runs per matrix and step, all ranks", 1.0, ".2f"),
    Row("offload_gathered", "CPU offload gathers gradients and momenta of all matrices on every rank, a sub-group at once",
        "gathered into whole matrices on a rank, in sizes of all matrices", 0.75, ".2f"),
    Row("bytes_moved", "momenta and updates are gathered whole on every rank",
        "elements received per Muon element and step, its own included, 2 ranks", 1.02, ".2f"),
    Row("init_roundtrip", "a checkpoint saved under zero.Init is scrambled when loaded without",
        "weights off what was saved, by name", 0),
    Row("universal", "ds_to_universal fails, no other world size", "weights off going on at 2 ranks, after universal to 1"),
    Row("roles", "who gets Muon goes by the words embed and lm_head",
        "embeddings and heads of GPT-2 under Muon", 0, ".0f"),
    Row("unknown_option", "unknown hyper-parameters are dropped", "misspelt options accepted in silence", 0, ".0f"),
)


def bar_of(row: Row) -> float:
    return WEIGHTS if row.bar is None else row.bar
