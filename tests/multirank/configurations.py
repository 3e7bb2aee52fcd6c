"""The configurations that are trained: in fp32 against the reference, in 16 bits against captured gradients."""

from tests.multirank.cases import Case


def _options(**given) -> dict:
    return given


PARITY = (
    Case("plain"),
    Case("offload", offload=True),
    Case("products as by default", model="wide", options=_options(ns_dtype="auto", lr=0.15)),
    Case("offload, products as by default", model="wide", offload=True, options=_options(ns_dtype="auto", lr=0.15)),
    Case("form by shape", options=_options(ns_form="auto")),
    Case("offload, form by shape", offload=True, options=_options(ns_form="auto")),
    Case("accumulation 4", accumulation=4),
    Case("offload, accumulation 4", offload=True, accumulation=4),
    Case("clipping", clip=0.05),
    Case("offload, clipping", offload=True, clip=0.05),
    Case(
        "accumulation and clipping, small sub-groups, a bucket smaller than a matrix",
        accumulation=4,
        clip=0.05,
        sub_group=150,
        reduce_bucket=50,
    ),
    Case(
        "offload, accumulation and clipping, small sub-groups, weight decay",
        offload=True,
        accumulation=2,
        clip=0.05,
        sub_group=150,
        options=_options(weight_decay=0.1),
    ),
    Case("zero.Init", zero_init=True, clip=0.05),
    Case("offload, zero.Init, reduce_scatter false", offload=True, zero_init=True, reduce_scatter=False),
    Case("reduce_scatter false, a bucket smaller than a matrix", reduce_scatter=False, reduce_bucket=50),
    Case("offload, a bucket smaller than a matrix", offload=True, reduce_bucket=50, accumulation=2),
    Case("frozen parameters", frozen=("2.weight", "2.bias", "8.bias"), clip=0.05),
    Case("persistent parameters", persistence=10**5, sub_group=150),
    Case("optimizer object from param_groups", route="groups", options=_options(weight_decay=0.05)),
    Case(
        "offload, zero.Init, optimizer object from param_groups",
        route="groups",
        offload=True,
        zero_init=True,
        accumulation=2,
    ),
    Case("groups of one's own with use_muon tags", route="tags", clip=0.05, sub_group=150),
    Case("heavy ball", options=_options(momentum_kind="heavy_ball", momentum=0.9)),
    Case("no nesterov, match_rms_adamw", options=_options(nesterov=False, scale="match_rms_adamw", lr=0.03)),
    Case(
        "offload, spectral scale, other betas",
        offload=True,
        options=_options(scale="spectral_unclamped", betas=[0.8, 0.9], eps=1e-6),
    ),
    Case("cautious weight decay", clip=0.05, options=_options(weight_decay=0.1, cautious_wd=True)),
    Case(
        "offload, cautious weight decay, accumulation, small sub-groups, a group with a decay of its own",
        route="tags",
        offload=True,
        accumulation=2,
        group_decay=0.3,
        sub_group=150,
        options=_options(weight_decay=0.1, cautious_wd=True),
    ),
    Case("own triples, scale none", options=_options(ns=[[2.0, -1.5, 0.5]] * 6, scale="none")),
    Case(
        "offload, AdamW and momentum by oneDNN",
        offload=True,
        clip=0.05,
        options=_options(cpu_kernels="onednn", weight_decay=0.1),
    ),
    Case("offload, generic kernels", offload=True, accumulation=2, options=_options(cpu_kernels="generic")),
    Case("gram with restarts, well conditioned", model="well conditioned", options=_options(ns_form="gram_restarts")),
    Case("gram form, well conditioned", model="well conditioned", options=_options(ns_form="gram")),
    Case(
        "offload, gram form, well conditioned, clipping",
        model="well conditioned",
        offload=True,
        clip=0.05,
        accumulation=2,
        options=_options(ns_form="gram", weight_decay=0.1),
    ),
    Case("convolutions and transposed storage", model="convolutions", clip=0.05, options=_options(weight_decay=0.1)),
    Case(
        "offload, zero.Init, convolutions and transposed storage",
        model="convolutions",
        offload=True,
        zero_init=True,
        accumulation=2,
        sub_group=150,
        options=_options(scale="spectral_unclamped"),
    ),
    Case(
        "offload, heavy ball without nesterov, clipping, small sub-groups, a bucket smaller than a matrix",
        offload=True,
        accumulation=2,
        clip=0.05,
        zero_init=True,
        reduce_scatter=False,
        reduce_bucket=50,
        sub_group=150,
        options=_options(momentum_kind="heavy_ball", nesterov=False, momentum=0.9),
    ),
    Case(
        "frozen and persistent parameters, heavy ball, zero.Init, weight decay",
        zero_init=True,
        accumulation=2,
        reduce_scatter=False,
        persistence=10**5,
        frozen=("2.weight", "2.bias", "8.bias"),
        reduce_bucket=50,
        options=_options(momentum_kind="heavy_ball", weight_decay=0.1),
    ),
    Case(
        "offload, frozen and persistent parameters, no nesterov, small sub-groups",
        offload=True,
        clip=0.05,
        accumulation=2,
        persistence=10**5,
        frozen=("2.weight", "2.bias", "8.bias"),
        sub_group=150,
        options=_options(nesterov=False),
    ),
    Case(
        "offload, groups with a decay of their own, accumulation",
        route="tags",
        offload=True,
        accumulation=2,
        group_decay=0.3,
        reduce_scatter=False,
        reduce_bucket=50,
        persistence=10**5,
        options=_options(weight_decay=0.1, nesterov=False),
    ),
    Case(
        "zero.Init, groups of one's own, frozen parameters, heavy ball",
        route="tags",
        zero_init=True,
        frozen=("2.weight", "2.bias", "8.bias"),
        options=_options(momentum_kind="heavy_ball"),
    ),
    Case(
        "optimizer object, clipping, small sub-groups, frozen and persistent parameters, heavy ball",
        route="groups",
        clip=0.05,
        sub_group=150,
        reduce_scatter=False,
        reduce_bucket=50,
        persistence=10**5,
        frozen=("2.weight", "2.bias", "8.bias"),
        options=_options(momentum_kind="heavy_ball", nesterov=False),
    ),
)

# Longer products of the above, for --full.
FULL = tuple(
    Case(
        f"all: offload {offload}, accumulation {acc}, clip {clip}, zero.Init {init}, scatter {scatter}",
        offload=offload,
        accumulation=acc,
        clip=clip,
        zero_init=init,
        reduce_scatter=scatter,
        reduce_bucket=50,
        sub_group=150,
        options=_options(weight_decay=0.1),
    )
    for offload in (False, True)
    for acc in (1, 3)
    for clip in (0.0, 0.05)
    for init in (False, True)
    for scatter in (False, True)
)

# What users' configurations bring along, in fp32.
USERS = (
    Case("torch LambdaLR from lr 0", schedule="torch LambdaLR", options=_options(weight_decay=0.1)),
    Case("WarmupLR", schedule="WarmupLR", offload=True, options=_options(weight_decay=0.1)),
    Case("WarmupDecayLR, zero.Init", schedule="WarmupDecayLR", zero_init=True, accumulation=2),
    Case("WarmupLR, a rate for each group", schedule="a rate for each group"),
    Case("offload, WarmupLR, rates that meet and part", schedule="rates that meet", offload=True),
    Case("OneCycle, optimizer object", schedule="OneCycle", route="groups"),
    Case("Hugging Face linear schedule, optimizer object", schedule="Hugging Face linear", route="groups"),
    Case("values of groups changed by hand, lr 0 in one step", schedule="by hand", options=_options(weight_decay=0.1)),
    Case(
        "offload, several groups, values changed by hand", schedule="by hand", route="tags", offload=True, sub_group=150
    ),
    Case("parameters offloaded to the CPU", offload=True, offload_param=True, accumulation=2, clip=0.05),
    Case("tied weights", model="tied", clip=0.05, options=_options(lr=0.04, weight_decay=0.1)),
    Case(
        "offload, zero.Init, tied weights",
        model="tied",
        offload=True,
        zero_init=True,
        accumulation=2,
        options=_options(lr=0.04),
    ),
    Case("LoRA adapters", model="lora"),
    Case("offload, LoRA adapters, accumulation, clipping", model="lora", offload=True, accumulation=2, clip=0.01),
    Case("a sub-group for every parameter", sub_group=1, clip=0.05),
    Case("offload, a sub-group for every parameter, accumulation", sub_group=1, offload=True, accumulation=2),
)

# MuonClip, with a threshold that some heads pass and some do not.
_MUON_CLIP = _options(per_head="mla", qk_clip=True, qk_clip_threshold=0.2)

# Parameters that hold several matrices.
BLOCKS = (
    Case("experts", model="experts"),
    Case(
        "offload, experts, accumulation, clipping, small sub-groups",
        model="experts",
        offload=True,
        accumulation=2,
        clip=0.05,
        sub_group=150,
        options=_options(weight_decay=0.1, scale="match_rms_adamw", lr=0.03),
    ),
    Case("fused", model="fused", sub_group=150),
    Case("offload, fused, one matrix each", model="fused", offload=True, options=_options(split_fused=False)),
    Case("fused, head by head", model="fused, head by head", accumulation=2),
    Case("experts, transposed", model="experts, transposed", sub_group=150),
    Case("latent attention by heads, clipped", model="latent", sub_group=150, options=_MUON_CLIP),
    Case(
        "offload, latent attention by heads, clipped, accumulation, weight decay",
        model="latent",
        offload=True,
        accumulation=2,
        options=_MUON_CLIP | {"weight_decay": 0.1},
    ),
    Case(
        "heads that share keys, clipped",
        model="fused",
        sub_group=150,
        options=_options(qk_clip=True, qk_clip_threshold=0.2),
    ),
    Case(
        "offload, experts, transposed, form by shape",
        model="experts, transposed",
        offload=True,
        options=_options(ns_form="auto", scale="spectral_unclamped"),
    ),
)

# On five ranks: most chunks are uneven, and several sub-groups are empty on the last ranks.
FIVE_RANKS = (
    Case(
        "five ranks, a sub-group for every parameter",
        sub_group=1,
        clip=0.05,
        accumulation=2,
        options=_options(weight_decay=0.1),
    ),
    Case("offload, five ranks, zero.Init", offload=True, zero_init=True, sub_group=150),
    Case("five ranks, experts", model="experts", sub_group=150),
)


def _fp16(power: int, **given) -> dict:
    """A dynamic scale that doubles after two good steps. From 2^12 it does, from 2^17 the first steps overflow."""
    return {"fp16": {"initial_scale_power": power, "loss_scale_window": 2, "hysteresis": 1, **given}}


_SUM_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
_SUM_16 = {"communication_data_type": "fp32"}
_EXACT = {"wire_dtype": "float32"}

# In 16 bits: the master weights against the reference that is fed the reduced gradients.
SIXTEEN_BITS = (
    Case("bf16", dtype="bf16", options=_EXACT),
    Case("bf16, summed in fp32, clipping", dtype="bf16", extra=_SUM_FP32, accumulation=2, clip=0.05, options=_EXACT),
    Case(
        "bf16, offload, zero.Init",
        dtype="bf16",
        offload=True,
        zero_init=True,
        accumulation=2,
        clip=0.05,
        options=_EXACT,
    ),
    Case(
        "bf16, offload, summed and communicated in fp32, small sub-groups",
        dtype="bf16",
        offload=True,
        sub_group=150,
        extra={**_SUM_FP32, **_SUM_16},
        accumulation=2,
        options=_options(weight_decay=0.1, **_EXACT),
    ),
    Case(
        "bf16, parameters offloaded, persistent parameters",
        dtype="bf16",
        offload=True,
        offload_param=True,
        persistence=10**5,
        options=_EXACT,
    ),
    Case(
        "bf16, offload, cautious weight decay",
        dtype="bf16",
        offload=True,
        sub_group=150,
        options=_options(weight_decay=0.1, cautious_wd=True, **_EXACT),
    ),
    Case("bf16, bf16 wire", dtype="bf16", model="well conditioned", clip=0.05),
    Case(
        "bf16, offload, bf16 wire", dtype="bf16", model="well conditioned", offload=True, sub_group=50, accumulation=2
    ),
    Case("bf16, offload, experts", dtype="bf16", model="experts", offload=True, clip=0.05, options=_EXACT),
    Case("fp16, a growing scale", dtype="fp16", extra=_fp16(12), clip=0.05, options=_EXACT),
    Case(
        "fp16, offload, accumulation, skipped steps",
        dtype="fp16",
        extra=_fp16(17),
        offload=True,
        accumulation=2,
        clip=0.05,
        sub_group=150,
        options=_options(weight_decay=0.1, **_EXACT),
    ),
    Case(
        "fp16, summed in fp32, zero.Init, parameters offloaded, a growing scale",
        dtype="fp16",
        extra={**_fp16(12), **_SUM_FP32},
        zero_init=True,
        offload=True,
        offload_param=True,
        options=_EXACT,
    ),
    Case(
        "fp16, static scale, persistent parameters",
        dtype="fp16",
        extra=_fp16(12, loss_scale=128),
        persistence=10**5,
        options=_EXACT,
    ),
)
