"""The models that are trained, their data and, without asking the code under test, who gets Muon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import nn

from tests.multirank.cases import INCLUDE, STEPS, Case


def _small() -> nn.Sequential:
    """Odd sizes, square, tall and wide matrices, two with fewer elements than three ranks."""
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.LayerNorm(32),
        nn.Linear(32, 24),
        nn.Tanh(),
        nn.Linear(24, 2, bias=False),
        nn.Tanh(),
        nn.Linear(2, 1, bias=False),
        nn.Tanh(),
        nn.Linear(1, 13),
        nn.Tanh(),
        nn.Linear(13, 13),
        nn.Tanh(),
        nn.Linear(13, 5),
    )


def _well_conditioned() -> nn.Sequential:
    """A tall and a wide matrix whose gradients have singular values within a factor of about 20, for the Gram form."""
    return nn.Sequential(nn.Linear(5, 17), nn.LayerNorm(17), nn.Linear(17, 4))


def _wide() -> nn.Sequential:
    """A tall and a wide matrix, so large that processors with the hardware could multiply them in bf16."""
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))


def _convolutions() -> nn.Sequential:
    """A stem and a hidden convolution, and transformers' Conv1D, which is stored (in, out): a tall and a wide one."""
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.Tanh(),
        nn.Conv2d(5, 4, 3),
        nn.Flatten(),
        nn.LayerNorm(16),
        Conv1D(4, 16),
        nn.Tanh(),
        Conv1D(11, 4),
        nn.Tanh(),
        nn.Linear(11, 3),
    )


class _Mean(nn.Module):
    """The mean over the tokens of a sequence."""

    def forward(self, x):
        return x.mean(1)


def _tied() -> nn.Sequential:
    """Tokens in, classes out, with one matrix for the embedding and the head, and one shared by two hidden layers."""
    model = nn.Sequential(
        nn.Embedding(11, 12),
        _Mean(),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 12),
        nn.LayerNorm(12),
        nn.Linear(12, 11, bias=False),
    )
    model[8].weight, model[6].weight = model[0].weight, model[2].weight
    return model


def _lora() -> nn.Module:
    """The small model with LoRA adapters of rank 3 on three of its Linears; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(_small(), LoraConfig(r=3, lora_alpha=6, target_modules=["2", "10", "12"]))


class _LastLogits(nn.Module):
    """What a language model says of the token after a sequence."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(input_ids=tokens, use_cache=False).logits[:, -1]


_EXPERTS = dict(
    vocab_size=24,
    hidden_size=8,
    intermediate_size=12,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=1,
    initializer_range=0.3,
)


def _mixtral() -> nn.Module:
    """Experts stored (out, in), gate above up."""
    import transformers

    config = transformers.MixtralConfig(**_EXPERTS, num_local_experts=5, num_experts_per_tok=2)
    config._experts_implementation = "eager"  # in double, too
    return _LastLogits(transformers.MixtralForCausalLM(config))


def _llama4() -> nn.Module:
    """Experts stored (in, out), gate beside up."""
    import transformers

    config = transformers.Llama4TextConfig(
        **_EXPERTS, head_dim=4, intermediate_size_mlp=10, num_local_experts=3, num_experts_per_tok=1, pad_token_id=0
    )
    return _LastLogits(transformers.Llama4ForCausalLM(config))


def _phi3() -> nn.Module:
    """q, k and v, and gate and up, one above the other."""
    import transformers

    return _LastLogits(transformers.Phi3ForCausalLM(transformers.Phi3Config(**_EXPERTS, pad_token_id=0)))


def _neox() -> nn.Module:
    """q, k and v of each head, head after head. A bias of k would have no gradient but rounding errors."""
    import transformers

    sizes = {key: value for key, value in _EXPERTS.items() if key != "num_key_value_heads"}
    return _LastLogits(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, attention_bias=False)))


def _moonlight() -> nn.Module:
    """Latent attention without a low rank of queries, then a layer of MLP and one of experts, one of them shared."""
    import transformers

    config = transformers.DeepseekV3Config(
        **{**_EXPERTS, "num_hidden_layers": 2, "num_key_value_heads": 2},
        q_lora_rank=None,
        kv_lora_rank=6,
        qk_nope_head_dim=4,
        qk_rope_head_dim=2,
        v_head_dim=3,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=5,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    )
    config._experts_implementation = "eager"
    return _LastLogits(transformers.DeepseekV3ForCausalLM(config))


def _indices(param) -> torch.Tensor:
    return torch.arange(param.numel()).view(param.shape)


def _mixtral_blocks(name: str, param) -> list[torch.Tensor]:
    if name.endswith("experts.gate_up_proj"):
        return [half for expert in _indices(param) for half in expert.chunk(2, 0)]
    return list(_indices(param)) if name.endswith("experts.down_proj") else []


def _llama4_blocks(name: str, param) -> list[torch.Tensor]:
    if name.endswith("experts.gate_up_proj"):
        return [half.T for expert in _indices(param) for half in expert.chunk(2, 1)]
    return [expert.T for expert in _indices(param)] if name.endswith("experts.down_proj") else []


def _phi3_blocks(name: str, param) -> list[torch.Tensor]:
    if name.endswith("qkv_proj.weight"):
        return list(_indices(param).split([8, 4, 4]))
    return list(_indices(param).split([12, 12])) if name.endswith("gate_up_proj.weight") else []


def _neox_blocks(name: str, param) -> list[torch.Tensor]:
    if not name.endswith("query_key_value.weight"):
        return []
    heads = _indices(param).view(2, 3, 4, 8)
    return [heads[:, part].reshape(8, 8) for part in range(3)]


def _moonlight_blocks(name: str, param) -> list[torch.Tensor]:
    """Latent attention head by head."""
    if name.endswith("self_attn.q_proj.weight"):
        return [part for head in _indices(param).split(6) for part in head.split([4, 2])]
    if name.endswith("kv_b_proj.weight"):
        return [part for head in _indices(param).split(7) for part in head.split([4, 3])]
    if name.endswith("kv_a_proj_with_mqa.weight"):
        return list(_indices(param).split([6, 2]))
    return _mixtral_blocks(name, param)


def _moonlight_heads(name: str, param) -> list[tuple]:
    heads = 2 * int(name.partition("layers.")[2][:1] or 0)  # of the layers before
    if name.endswith("self_attn.q_proj.weight"):
        parts = [head.split([4, 2]) for head in _indices(param).split(6)]
        return [(part, (heads + h,), power) for h, two in enumerate(parts) for part, power in zip(two, (0.5, 1.0))]
    if name.endswith("kv_b_proj.weight"):
        return [(head[:4], (heads + h,), 0.5) for h, head in enumerate(_indices(param).split(7))]
    return []


def _fused_heads(name: str, param) -> list[tuple]:
    if not name.endswith("qkv_proj.weight"):
        return []
    return [(rows, (0, 1), 0.5) for rows in _indices(param)[:12].split(4)]  # two heads of queries share one of keys


@dataclass(frozen=True)
class Model:
    """inputs: shape of one micro-batch. outputs: classes, or width of a regression target.

    tokens: inputs are integers below it. include: names of Muon's against the rules.

    adamw: names, or their ends, with two or more dimensions that are no hidden matrices. transposed: names stored (in,
    out). blocks: of a parameter that holds several matrices, each (outputs, inputs) of indices into its elements. heads: of
    one that makes queries or keys, as rows of the reference's qk_clip without the name; heads are counted over all layers.
    """

    build: Callable[[], nn.Sequential]
    inputs: tuple[int, ...]
    outputs: int
    classify: bool = True
    tokens: int = 0
    adamw: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    blocks: Callable[[str, torch.Tensor], list[torch.Tensor]] = lambda name, param: []
    heads: Callable[[str, torch.Tensor], list[tuple]] = lambda name, param: []

    def role(self, name: str, shape: tuple[int, ...]) -> str:
        is_matrix = len(shape) >= 2 and min(shape[0], math.prod(shape[1:])) > 1 or name in self.include
        return "muon" if is_matrix and not name.endswith(self.adamw or ("-",)) else "adamw"


MODELS = {
    "small": Model(_small, (4, 16), 5, include=INCLUDE["small"]),
    "well conditioned": Model(_well_conditioned, (64, 5), 4, classify=False),
    "wide": Model(_wide, (256, 64), 64, classify=False),
    "convolutions": Model(
        _convolutions, (4, 2, 6, 6), 3, classify=False, adamw=("0.weight",), transposed=("5.weight", "7.weight")
    ),
    "tied": Model(_tied, (4, 6), 11, tokens=11, adamw=("0.weight",)),
    "lora": Model(_lora, (4, 16), 5),
    "experts": Model(
        _mixtral,
        (4, 6),
        24,
        tokens=24,
        adamw=("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight"),
        blocks=_mixtral_blocks,
    ),
    "fused": Model(
        _phi3,
        (4, 6),
        24,
        tokens=24,
        adamw=("embed_tokens.weight", "lm_head.weight"),
        blocks=_phi3_blocks,
        heads=_fused_heads,
    ),
    "latent": Model(
        _moonlight,
        (4, 6),
        24,
        tokens=24,
        adamw=("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight"),
        blocks=_moonlight_blocks,
        heads=_moonlight_heads,
    ),
    "fused, head by head": Model(
        _neox, (4, 6), 24, tokens=24, adamw=("embed_in.weight", "lm_head.weight"), blocks=_neox_blocks
    ),
    "experts, transposed": Model(
        _llama4,
        (4, 6),
        24,
        tokens=24,
        adamw=("embed_tokens.weight", "lm_head.weight", "feed_forward.router.weight"),
        blocks=_llama4_blocks,
    ),
}


def build(case: Case) -> nn.Sequential:
    """The same weights on every rank and for the reference."""
    torch.manual_seed(0)
    return MODELS[case.model].build()


def batches(case: Case, world: int):
    """[step][micro-batch][rank] -> (inputs, targets: classes (4,) or values (rows, outputs))"""
    generator, model = torch.Generator().manual_seed(7), MODELS[case.model]

    def batch():
        inputs = (
            torch.randint(0, model.tokens, model.inputs, generator=generator)
            if model.tokens
            else torch.randn(model.inputs, generator=generator)
        )
        if model.classify:
            return inputs, torch.randint(0, model.outputs, model.inputs[:1], generator=generator)
        return inputs, torch.randn((model.inputs[0], model.outputs), generator=generator)

    return [[[batch() for _ in range(world)] for _ in range(case.accumulation)] for _ in range(STEPS)]


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A mean over the batch, so that equal shares of it average to the whole. targets: classes, or values."""
    if targets.is_floating_point():
        return nn.functional.mse_loss(outputs, targets.to(outputs.dtype))
    return nn.functional.cross_entropy(outputs, targets)
