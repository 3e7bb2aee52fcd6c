"""Which rows make a head: in running models, a head whose rows are zero has no logits, and the others have theirs."""

import pytest
import torch
from torch import nn

from tests.python.qk_clip.test_logits import GPT2, SIZES, _model
from zeromuon.qk_clip.clip import QkClip
from zeromuon.qk_clip.watch import LogitWatch, watch_transformers
from zeromuon.selection.attention import attention_heads

NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
FALCON = dict(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.5)
LATENT = dict(
    SIZES, num_key_value_heads=4, kv_lora_rank=11, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=3, n_routed_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=10, first_k_dense_replace=2, n_group=1, topk_group=1,
)  # fmt: skip
MODELS = {
    "Llama": ("Llama", SIZES),
    "Llama, biases": ("Llama", dict(SIZES, attention_bias=True)),
    "GPT2": ("GPT2", GPT2),
    "GPTBigCode, multi-query": ("GPTBigCode", GPT2),
    "GPTBigCode": ("GPTBigCode", dict(GPT2, multi_query=False)),
    "GPTNeoX": ("GPTNeoX", NEOX),
    "Phi3": ("Phi3", dict(SIZES, pad_token_id=0)),
    "DeepseekV3": ("DeepseekV3", dict(LATENT, q_lora_rank=9)),
    "DeepseekV3, no rank of q": ("DeepseekV3", dict(LATENT, q_lora_rank=None)),
    "OPT": ("OPT", dict(vocab_size=40, hidden_size=24, num_hidden_layers=2, ffn_dim=20, num_attention_heads=4,
                        max_position_embeddings=32, word_embed_proj_dim=24, init_std=0.5)),
}  # fmt: skip
IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))


def first_layer(model: nn.Module) -> tuple:
    """The heads of the first attention, and a function that gives the largest logit of each."""
    attention = attention_heads(model)[0]
    watch_transformers()
    watch = LogitWatch({model.get_submodule(attention.path): attention.queries}, torch.device("cpu"), exact=True)

    def logits() -> torch.Tensor:
        watch.reset()
        model.train()(input_ids=IDS)
        return watch.largest.clone()

    return attention, logits


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_head_are_those_that_make_its_logits(name):
    kind, config = MODELS[name]
    model = _model(kind, **config)
    with torch.no_grad():
        for end, p in model.named_parameters():
            if end.endswith("bias"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    attention, logits = first_layer(model)
    assert attention.obstacle is None and (attention.queries, attention.keys) == {
        "Llama": (4, 2), "Llama, biases": (4, 2), "Phi3": (4, 2), "GPTBigCode, multi-query": (4, 1),
    }.get(name, (4, 4))  # fmt: skip
    before = logits()
    shared = attention.queries // attention.keys
    for head in range(attention.queries):
        for part, of_part in (("q", head), ("k", head // shared)):
            saved = {n: p.detach().clone() for n, p in model.named_parameters()}
            with torch.no_grad():
                for outputs in attention.outputs:
                    if outputs.part == part or part == "q" and outputs.part == "rope":
                        place = slice(outputs.begins[of_part], outputs.begins[of_part] + outputs.length)
                        projection = model.get_submodule(outputs.projection)
                        (projection.weight.T if outputs.transposed else projection.weight)[place] = 0
                        if projection.bias is not None:
                            projection.bias[place] = 0
            after = logits()
            changed = [h for h in range(attention.queries) if not torch.equal(before[h], after[h])]
            latent_keys = part == "k" and any(o.part == "rope" for o in attention.outputs)
            assert changed == ([head] if part == "q" else [h for h in range(4) if h // shared == head // shared])
            assert latent_keys or all(after[h] == 0 for h in changed)
            model.load_state_dict(saved, strict=False)


OPTIONS = {
    "qk_clip": True, "qk_clip_threshold": 100.0, "qk_clip_alpha": 0.5, "qk_clip_statistic": "exact",
    "log_max_attention_logit": False,
}  # fmt: skip


def refusal(model: nn.Module, **options) -> str:
    with pytest.raises(ValueError, match="^qk_clip: ") as caught:
        QkClip(model, {**OPTIONS, **options})
    return str(caught.value)


def test_a_model_whose_queries_are_normalised_is_refused_with_the_reason_and_may_be_watched():
    model = _model("Qwen3", **SIZES, head_dim=6)
    said = refusal(model)
    assert "model.layers.0.self_attn (and 1 more): q_norm, k_norm: queries and keys are normalised" in said
    assert '"log_max_attention_logit": true' in said
    assert QkClip(model, {**OPTIONS, "qk_clip": False, "log_max_attention_logit": True}).seen["heads"] == 8


def test_the_norms_of_latent_attention_are_none_of_queries_and_keys():
    assert attention_heads(_model("DeepseekV3", **dict(LATENT, q_lora_rank=9)))[0].obstacle is None


def test_frozen_and_adapted_projections_are_refused_by_name():
    model = _model("Llama", **SIZES)
    model.model.layers[1].self_attn.k_proj.weight.requires_grad = False
    assert "model.layers.1.self_attn: k_proj is frozen" in refusal(model)
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(_model("Llama", **SIZES), LoraConfig(r=2, target_modules=["q_proj"]))
    assert "self_attn (and 1 more): q_proj is adapted" in refusal(adapted)


def test_attention_of_which_nothing_is_trained_is_left_alone():
    model = _model("Llama", **SIZES)
    model.model.layers[0].requires_grad_(False)
    assert QkClip(model, OPTIONS).seen["heads"] == 4


def test_a_model_without_known_attention_is_told_what_to_call():
    assert "zeromuon.qk_clip.report(module, q, k)" in refusal(nn.Sequential(nn.Linear(4, 4)))


def test_heads_that_no_count_explains_are_refused():
    model = _model("Llama", **SIZES)
    model.model.layers[0].self_attn.q_proj = nn.Linear(24, 23, bias=False)
    assert "model.layers.0.self_attn: the outputs of q_proj are no attention heads" in refusal(model)


def test_a_module_of_ones_own_is_known_by_its_names_and_counts():
    own = nn.Module()
    own.q_proj, own.k_proj, own.num_heads, own.num_kv_heads, own.head_dim = nn.Linear(8, 12), nn.Linear(8, 6), 4, 2, 3
    found = attention_heads(nn.Sequential(own))[0]
    assert (found.queries, found.keys, found.obstacle) == (4, 2, None)
    assert [(o.part, o.begins, o.length) for o in found.outputs] == [("q", (0, 3, 6, 9), 3), ("k", (0, 3), 3)]
