"""What is compared: one row per defect that DeepSpeed's own Muon has or had under ZeRO-3. No torch."""

from __future__ import annotations

from dataclasses import dataclass

DEEPSPEED, OURS = "deepspeed", "zeromuon"
SYSTEMS = (DEEPSPEED, OURS)

# The bar of a figure that is measured with it: see kit.weight_bar and the functions that return a bar.
MEASURED = None
WEIGHTS = "weights off the reference, "


@dataclass(frozen=True)
class Figure:
    """One number of a row. what: it is. bar: the largest value without the defect, or MEASURED. unit: how value and bar
    are printed (a format of Python's)."""

    what: str
    bar: float | None = MEASURED
    unit: str = ".1e"


@dataclass(frozen=True)
class Row:
    """One defect. name: of the function that measures it, and on the command line. defect: what is wrong when it is
    live. crash_counts: whether ranks that die without a word are how the defect shows."""

    name: str
    defect: str
    figures: tuple[Figure, ...]
    crash_counts: bool = False


ROWS = (
    Row("accumulation", "Newton-Schulz runs once per micro-batch", (Figure(WEIGHTS + "4 micro-batches per step"),)),
    Row(
        "reduce_bucket",
        "a parameter larger than reduce_bucket_size gets no Newton-Schulz",
        (Figure(WEIGHTS + "matrices larger than reduce_bucket_size"),),
    ),
    Row(
        "zero_init",
        "under zero.Init no parameter gets Muon, silently",
        (Figure("matrices without Muon, model built under zero.Init", 0, ".0f"),),
    ),
    Row(
        "mixed_shapes",
        "matrices of different shapes crash on gloo",
        (Figure(WEIGHTS + "square, tall and wide matrices"),),
        crash_counts=True,
    ),
    Row(
        "clip",
        "clipping acts on the orthogonalised update, and its norm is what is reported",
        (
            Figure(WEIGHTS + "gradients clipped at 0.05"),
            Figure("reported gradient norm off the true one, relative", 1e-6),
        ),
    ),
    Row(
        "reduce_scatter",
        "reduce_scatter: true, the default, is refused",
        (Figure(WEIGHTS + "reduce_scatter not mentioned"),),
    ),
    Row(
        "bf16_momentum",
        "the momentum is kept in the communication dtype",
        (Figure("stored momentum off fp32, relative, 30 bf16 steps", 1e-6),),
    ),
    Row(
        "fp16_underflow",
        "fp16 with CPU offload: small momenta underflow to zero",
        (Figure("momentum elements lost to zero, losses of 1e-6", 0, ".1%"),),
    ),
    Row(
        "fp16_scale",
        "fp16 without offload: the momentum mixes gradients of different loss scales",
        (Figure("1 - cosine of stored and unscaled momentum, loss scale x 8", 1e-6),),
    ),
    Row(
        "offload_repeats",
        "CPU offload repeats every Newton-Schulz on every rank and gathers all matrices at once",
        (
            Figure("Newton-Schulz runs per matrix and step, CPU offload", 1.0, ".2f"),
            Figure("gathered whole on a rank at once, in sizes of Muon", MEASURED, ".2f"),
        ),
    ),
    Row(
        "bytes_moved",
        "without offload gradients, momenta and updates are gathered on every rank",
        (Figure("bytes received per byte of Muon and rank, own included", MEASURED, ".2f"),),
    ),
    Row(
        "init_roundtrip",
        "a checkpoint saved under zero.Init is scrambled when loaded without",
        (
            Figure("weights and momenta off what was saved, by name", 0),
            Figure("weights off going on, one more step", 0),
        ),
    ),
    Row(
        "universal",
        "ds_to_universal fails, so there is no other world size",
        (Figure("weights off going on at 2 ranks, converted for 1", 2e-6),),
    ),
    Row(
        "roles",
        'who gets Muon goes by the words "embed" and "lm_head" only',
        (Figure("embeddings and heads of a GPT-2 under Muon", 0, ".0f"),),
    ),
    Row(
        "unknown_option",
        "unknown hyper-parameters are dropped",
        (Figure("misspelt hyper-parameters accepted in silence", 0, ".0f"),),
    ),
)
