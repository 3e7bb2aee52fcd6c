"""Fused projections of known modules: which parts the outputs of a weight have, in which order. Data, read from transformers
5.23; no torch.

The class of a module decides, and its own attributes or those of its config say the sizes. A row that does not fit the
shape is no row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .heads import value_of


@dataclass(frozen=True)
class Family:
    """One layout.

    modules: regular expression of the class of the module that has the projection, the whole name.
    projection: names of the projection in it, separated by spaces.
    sizes: of the parts of a head, each a product or quotient of numbers and names; or "2 equal", "3 equal".
    heads: how often the parts follow each other, in the same words.
    when: a name, or a name behind "not", whose truth the row needs.
    apart: whether the parts of each head have inputs of their own, and so are matrices of their own.
    kind: "qkv" where the outputs are attention heads of q, k and v, all of one width; "mla" where the parts are those of a
        head of latent attention; empty for all else.
    order: of kind "qkv": a letter for each part, q, k, v, or g for a gate.
    """

    modules: str
    projection: str
    sizes: str
    heads: str = "1"
    when: str = ""
    apart: bool = False
    kind: str = ""
    order: str = "qkv"

    @cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile(self.modules)

    def is_of(self, module, projection: str) -> bool:
        """Whether the row is about this projection of this module."""
        if projection not in self.projection.split():
            return False
        if not any(self._pattern.fullmatch(kind.__name__) for kind in type(module).__mro__):
            return False
        return not self.when or bool(_named(module, self.when.removeprefix("not "))) is not self.when.startswith("not ")

    def parts(self, module, outputs: int) -> "Parts | None":
        """Those of the projection of this module; None where a name is missing, or they are not all its outputs."""
        try:
            heads = _number(module, self.heads)
            if self.sizes.endswith(" equal"):
                count = int(self.sizes.split()[0])
                sizes: tuple[int, ...] = (outputs // heads // count,) * count
            else:
                sizes = tuple(_number(module, size) for size in self.sizes.split())
        except (AttributeError, TypeError, ValueError, ZeroDivisionError):
            return None
        fits = heads > 0 and min(sizes) >= 0 and heads * sum(sizes) == outputs
        return Parts(heads, sizes, self.apart, self.kind, self.order) if fits else None


class Parts(NamedTuple):
    """Of a projection: the outputs of each part of a head, 0 for one that it does not have, and how many heads there are. The rest: as in Family."""

    heads: int
    sizes: tuple[int, ...]
    apart: bool
    kind: str
    order: str


# Latent attention, of DeepSeek-V2 and those that have it from there.
_LATENT = r".*(Attention|MLA)"
_MAMBA_2 = r"Mamba2Mixer|NemotronHMamba2Mixer|BambaMixer|FalconH1Mixer|Zamba2MambaMixer|GraniteMoeHybridMambaLayer"

FAMILIES = (
    # q, k and v, one under the other (of Conv1D, side by side)
    Family("GPT2Attention|DecisionTransformerGPT2Attention|ImageGPTAttention", "c_attn", "3 equal",
           when="not is_cross_attention", kind="qkv"),
    Family("GPT2Attention|DecisionTransformerGPT2Attention|ImageGPTAttention", "c_attn", "2 equal", when="is_cross_attention",
           kind="qkv", order="kv"),
    Family("GPTBigCodeAttention", "c_attn", "embed_dim embed_dim", when="is_cross_attention", kind="qkv", order="kv"),
    Family("GPTBigCodeAttention", "c_attn", "embed_dim kv_dim kv_dim", when="multi_query", kind="qkv"),
    Family("MptAttention|ModernBertAttention", "Wqkv", "3 equal", kind="qkv"),
    Family("DbrxAttention", "Wqkv", "hidden_size num_key_value_heads*head_dim num_key_value_heads*head_dim", kind="qkv"),
    Family("Phi3Attention|Phi4MultimodalAttention", "qkv_proj",
           "num_attention_heads*head_dim num_key_value_heads*head_dim num_key_value_heads*head_dim", kind="qkv"),
    Family("FalconAttention", "query_key_value", "num_heads*head_dim head_dim head_dim", when="multi_query", kind="qkv"),
    Family("Exaone4_5_VisionAttention", "qkv", "q_dim kv_dim kv_dim", kind="qkv"),
    Family("TimesformerSelfAttention|.*VisionAttention|VitDetAttention|SegGptAttention|BlipAttention|Blip2Attention",
           "qkv", "3 equal", kind="qkv"),
    Family("MultiheadAttention", "in_proj_weight", "3 equal", kind="qkv"),
    # q, k and v of a head, head after head
    Family("GPTBigCodeAttention", "c_attn", "head_dim head_dim head_dim", "num_heads", when="not multi_query", kind="qkv"),
    Family("GPTNeoXAttention", "query_key_value", "head_size head_size head_size", "num_attention_heads", kind="qkv"),
    Family("GPTNeoXJapaneseAttention", "query_key_value", "head_size head_size head_size", "num_attention_heads", kind="qkv"),
    Family("BloomAttention|PersimmonAttention", "query_key_value", "head_dim head_dim head_dim", "num_heads", kind="qkv"),
    Family("FalconAttention", "query_key_value", "num_heads/num_kv_heads*head_dim head_dim head_dim", "num_kv_heads",
           when="new_decoder_architecture", kind="qkv"),
    Family("FalconAttention", "query_key_value", "head_dim head_dim head_dim", "num_heads", when="not multi_query", kind="qkv"),
    Family("CodeGenAttention", "qkv_proj", "embed_dim/4 embed_dim/4 embed_dim/4", "4", kind="qkv", order="qvk"),
    Family("MiniMaxLightningAttention", "qkv_proj", "head_dim head_dim head_dim", "num_attention_heads", kind="qkv"),
    Family("DisentangledSelfAttention", "in_proj", "attention_head_size attention_head_size attention_head_size",
           "num_attention_heads", kind="qkv"),
    # q and its gate, head after head
    Family("Qwen3NextAttention|Qwen3_5Attention|Qwen3_5MoeAttention", "q_proj", "head_dim head_dim", "num_attention_heads",
           kind="qkv", order="qg"),
    # latent attention: a part without position, and one with it or the values
    Family(_LATENT, "q_b_proj q_proj", "qk_nope_head_dim qk_rope_head_dim", "num_heads", when="kv_b_proj", kind="mla"),
    Family(_LATENT, "kv_b_proj", "qk_nope_head_dim v_head_dim", "num_heads", kind="mla"),
    Family(_LATENT, "kv_a_proj_with_mqa", "kv_lora_rank qk_rope_head_dim"),
    Family("DeepseekV4CSACompressor|DeepseekV4Indexer", "kv_proj gate_proj", "2 equal"),
    Family("DeepseekV4Attention", "o_a_proj", "o_lora_rank", "o_groups", apart=True),
    # gate and up
    Family(r".*MLP", "gate_up_proj Wi input_linear", "2 equal"),
    # linear attention and state spaces
    Family("Qwen3NextGatedDeltaNet", "in_proj_qkvz",
           "head_k_dim head_k_dim num_v_heads/num_k_heads*head_v_dim num_v_heads/num_k_heads*head_v_dim", "num_k_heads"),
    Family("Qwen3_5GatedDeltaNet|Qwen3_5MoeGatedDeltaNet|Qwen4ExpTextGatedDeltaNet", "in_proj_qkv", "key_dim key_dim value_dim"),
    Family("MambaMixer|FalconMambaMixer|JambaMambaMixer", "in_proj", "intermediate_size intermediate_size"),
    Family("MambaMixer|FalconMambaMixer|JambaMambaMixer", "x_proj", "time_step_rank ssm_state_size ssm_state_size"),
    Family(_MAMBA_2, "in_proj",
           "intermediate_size intermediate_size n_groups*ssm_state_size n_groups*ssm_state_size num_heads"),
    Family("Lfm2ShortConv|Lfm2MoeShortConv|Lfm3ShortConv", "in_proj", "3 equal"),
    # value and gate
    Family(r".*ConvolutionModule", "pointwise_conv1", "2 equal"),
)  # fmt: skip


def fused(module, projection: str, outputs: int) -> tuple[bool, "Parts | None"]:
    """Whether there is a row about this projection of the module, and the parts of its outputs; None where no row fits."""
    rows = [family for family in FAMILIES if module is not None and family.is_of(module, projection)]
    return bool(rows), next(filter(None, (row.parts(module, outputs) for row in rows)), None)


def _number(module, words: str) -> int:
    """The value of a product or quotient of numbers and names."""
    value = 1
    for operator, word in re.findall(r"([*/]?)([^*/]+)", words):
        factor = int(word) if word.isdigit() else _named(module, word)
        if operator == "/" and value % factor:
            raise ValueError(f"{value} is no multiple of {word}, {factor}")
        value = value // factor if operator == "/" else value * factor
    return value


def _named(module, name: str):
    """What the module calls so, or its config. A config that is not there has no names."""
    found = value_of(module, name)
    return value_of(value_of(module, "config"), name) if found is None else found
