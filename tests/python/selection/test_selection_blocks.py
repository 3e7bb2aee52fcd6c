"""Which matrices a parameter holds: of transformers' modules built from configs, and as a user says it."""

import warnings

import pytest
import torch
import transformers
from torch import nn

from tests.python.selection.test_selection import Net, refusal, specs_of
from zeromuon.selection.rules import ParamSpec, param_groups
from zeromuon.selection.splits import Split, read_split

LM = dict(vocab_size=40, num_hidden_layers=1)
ATTENTION = dict(LM, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=20)


def built(name: str, **config):
    """A model of transformers, in memory that is not there."""
    kind = getattr(transformers, f"{name}Config")
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(kind(**config))


def matrices(model, end: str) -> str:
    """Of the one parameter, or the equal ones, whose name ends so."""
    found = {spec.matrices for name, spec in specs_of(model).items() if name.endswith(end) and spec.role == "muon"}
    assert len(found) == 1, found
    return found.pop()


MOE = dict(ATTENTION, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=10)
LATENT = dict(
    ATTENTION, num_key_value_heads=4, q_lora_rank=9, kv_lora_rank=11, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=3,
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=10, first_k_dense_replace=0, n_group=1, topk_group=1,
)  # fmt: skip
FALCON = dict(LM, hidden_size=24, num_attention_heads=4)

STACKS = [
    ("Mixtral", dict(ATTENTION, num_local_experts=5), "experts.gate_up_proj", "5 x (20x24) x 2"),
    ("Mixtral", dict(ATTENTION, num_local_experts=5), "experts.down_proj", "5 x (24x20)"),
    ("Qwen3Moe", MOE, "experts.gate_up_proj", "5 x (10x24) x 2"),
    ("DeepseekV3", LATENT, "experts.down_proj", "4 x (24x10)"),
    ("GptOss", dict(ATTENTION, num_local_experts=5), "experts.gate_up_proj", "5 x (24x40)"),
    ("GptOss", dict(ATTENTION, num_local_experts=5), "experts.down_proj", "5 x (20x24)"),
    ("Llama4Text", dict(ATTENTION, num_local_experts=3, intermediate_size_mlp=16), "experts.gate_up_proj", "3 x (24x20) x 2"),
    ("Llama4Text", dict(ATTENTION, num_local_experts=3, intermediate_size_mlp=16), "experts.down_proj", "3 x (20x24)"),
    ("Dbrx", dict(d_model=24, n_heads=4, n_layers=1, vocab_size=40, max_seq_len=32,
                  attn_config=dict(kv_n_heads=2, rope_theta=1e4), ffn_config=dict(ffn_hidden_size=10, moe_num_experts=3, moe_top_k=1)),
     "mlp.w2", "3 x (10x24)"),
]  # fmt: skip

FUSED = [
    ("GPT2", dict(vocab_size=40, n_embd=24, n_layer=1, n_head=4), "c_attn.weight", "(24x24) x 3"),
    ("GPTBigCode", dict(vocab_size=40, n_embd=24, n_layer=1, n_head=4), "c_attn.weight", "(24x24) + (6x24) x 2"),
    ("GPTBigCode", dict(vocab_size=40, n_embd=24, n_layer=1, n_head=4, multi_query=False), "c_attn.weight", "(24x24) x 3"),
    ("GPTNeoX", dict(FALCON, intermediate_size=20), "query_key_value.weight", "(24x24) x 3"),
    ("Bloom", dict(vocab_size=40, hidden_size=24, n_layer=1, n_head=4), "query_key_value.weight", "(24x24) x 3"),
    ("Falcon", FALCON, "query_key_value.weight", "(24x24) + (6x24) x 2"),
    ("Falcon", dict(FALCON, multi_query=False), "query_key_value.weight", "(24x24) x 3"),
    ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2), "query_key_value.weight", "(24x24) + (12x24) x 2"),
    ("CodeGen", dict(vocab_size=40, n_embd=24, n_layer=1, n_head=4, rotary_dim=4), "qkv_proj.weight", "(24x24) x 3"),
    ("Mpt", dict(vocab_size=40, d_model=24, n_layers=1, n_heads=4), "Wqkv.weight", "(24x24) x 3"),
    ("Phi3", dict(ATTENTION, pad_token_id=0), "qkv_proj.weight", "(24x24) + (12x24) x 2"),
    ("Phi3", dict(ATTENTION, pad_token_id=0), "gate_up_proj.weight", "(20x24) x 2"),
    ("DeepseekV3", LATENT, "q_b_proj.weight", "(20x9) + (16x9)"),
    ("DeepseekV3", LATENT, "kv_b_proj.weight", "(20x11) + (12x11)"),
    ("DeepseekV3", LATENT, "kv_a_proj_with_mqa.weight", "(11x24) + (4x24)"),
    ("DeepseekV3", dict(LATENT, q_lora_rank=None), "q_proj.weight", "(20x24) + (16x24)"),
    ("DeepseekV2", dict(LATENT, q_lora_rank=None), "kv_b_proj.weight", "(20x11) + (12x11)"),
    ("Qwen3Next", dict(MOE, layer_types=["full_attention"]), "q_proj.weight", "(24x24) x 2"),
    ("Qwen3Next", dict(MOE, layer_types=["linear_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
                       linear_key_head_dim=5, linear_value_head_dim=3), "in_proj_qkvz.weight", "(10x24) x 2 + (12x24) x 2"),
    ("Mamba", dict(LM, hidden_size=24, state_size=5, time_step_rank=3), "in_proj.weight", "(48x24) x 2"),
    ("Mamba", dict(LM, hidden_size=24, state_size=5, time_step_rank=3), "x_proj.weight", "(3x48) + (5x48) x 2"),
    ("Mamba2", dict(LM, hidden_size=24, num_heads=6, head_dim=8, n_groups=2, state_size=5), "in_proj.weight",
     "(48x24) x 2 + (10x24) x 2 + (6x24)"),
    ("Lfm2", dict(ATTENTION, layer_types=["conv"]), "conv.in_proj.weight", "(24x24) x 3"),
]  # fmt: skip


@pytest.mark.parametrize("name, config, end, expected", STACKS + FUSED)
def test_a_parameter_of_a_known_module_is_split_as_its_module_computes(name, config, end, expected):
    assert matrices(built(name, **config), end) == expected


def test_a_convolution_in_groups_is_a_matrix_a_group_whatever_split_fused_says():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Conv1d(12, 6, 5, groups=2))
    for given in ({}, {"split_fused": False}):
        specs = specs_of(model, **given)
        assert (specs["1.weight"].matrices, specs["2.weight"].matrices) == ("(3x18) x 4", "(3x30) x 2")
    assert specs["2.weight"].blocks == [(0, 3, 0, 30, 1, 0), (3, 6, 0, 30, 1, 0)]


def test_experts_of_jetmoe_have_gate_and_up_where_their_layer_is_an_mlp():
    model = built("JetMoe", **dict(ATTENTION, num_local_experts=4, num_experts_per_tok=2, kv_channels=6))
    assert matrices(model, "mlp.input_linear.weight") == "4 x (20x24) x 2"
    assert matrices(model, "mlp.output_linear.weight") == "4 x (24x20)"
    assert matrices(model, "self_attention.experts.input_linear.weight") == "4 x (12x24)"


def test_what_a_module_has_under_a_name_of_another_is_whole():
    model = built("Llama", **ATTENTION)
    for end in ("q_proj.weight", "k_proj.weight", "o_proj.weight", "gate_proj.weight"):
        assert matrices(model, end) == ""


def test_blocks_of_a_stack_are_rows_of_each_expert_and_of_columns_where_it_is_stored_so():
    up = specs_of(built("Mixtral", **dict(ATTENTION, num_local_experts=2)))["model.layers.0.mlp.experts.gate_up_proj"]
    assert (up.rows, up.cols, up.transposed) == (80, 24, False)
    assert up.blocks == [(b, b + 20, 0, 24, 1, 0) for b in (0, 20, 40, 60)]
    llama = built("Llama4Text", **dict(ATTENTION, num_local_experts=2, intermediate_size_mlp=16))
    up = specs_of(llama)["model.layers.0.feed_forward.experts.gate_up_proj"]
    assert (up.rows, up.cols, up.transposed) == (48, 40, True)
    assert up.blocks == [(0, 24, 0, 20, 1, 0), (0, 24, 20, 40, 1, 0), (24, 48, 0, 20, 1, 0), (24, 48, 20, 40, 1, 0)]


def test_the_parts_of_all_heads_are_one_matrix():
    spec = specs_of(built("GPTNeoX", **dict(FALCON, intermediate_size=20)))
    fused = next(s for name, s in spec.items() if name.endswith("query_key_value.weight"))
    assert fused.blocks == [(0, 6, 0, 24, 4, 18), (6, 12, 0, 24, 4, 18), (12, 18, 0, 24, 4, 18)]


def test_without_split_fused_an_expert_and_a_projection_are_one_matrix_each():
    mixtral = {
        n: s.matrices
        for n, s in specs_of(built("Mixtral", **dict(ATTENTION, num_local_experts=5)), split_fused=False).items()
    }
    assert mixtral["model.layers.0.mlp.experts.gate_up_proj"] == "5 x (40x24)"
    assert all(
        s.matrices == "" for s in specs_of(built("Phi3", **dict(ATTENTION, pad_token_id=0)), split_fused=False).values()
    )


def test_experts_that_do_not_fit_their_layout_stay_on_adamw_with_a_warning():
    model = built("Mixtral", **dict(ATTENTION, num_local_experts=5))
    experts = model.model.layers[0].mlp.experts
    experts.is_transposed = True
    with pytest.warns(
        UserWarning, match=r"gate_up_proj.* do not fit each other as \(in, out\).*left to AdamW.*splits="
    ):
        groups = param_groups(model)
    assert {s.role for s in groups.specs if "experts" in s.name} == {"adamw"}


def test_a_projection_whose_sizes_do_not_fit_is_whole_with_a_warning():
    model = built("Phi3", **dict(ATTENTION, pad_token_id=0))
    attention = model.model.layers[0].self_attn
    attention.qkv_proj = nn.Linear(24, 50, bias=False, device="meta")
    with pytest.warns(UserWarning, match="50 outputs are not those of qkv_proj of Phi3Attention.*as one matrix"):
        groups = param_groups(model)
    spec = next(s for s in groups.specs if "qkv_proj" in s.name)
    assert (spec.role, spec.matrices) == ("muon", "")


class Experts(nn.Module):
    """Says nothing of how they are stored."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 8, 6))


def stacked():
    return Net(a=nn.Linear(6, 4), experts=Experts())


def test_a_stack_of_unknown_layout_stays_on_adamw_with_a_warning_and_takes_what_it_is_told():
    with pytest.warns(UserWarning, match="experts.up: it is not known how its matrices are stored"):
        groups = param_groups(stacked())
    assert next(s for s in groups.specs if s.name == "experts.up").role == "adamw"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = specs_of(stacked(), splits={"*.up": {"stack": True, "transposed": False, "sizes": [5, 3]}})["experts.up"]
    assert (spec.role, spec.matrices, spec.transposed) == ("muon", "3 x [(5x6) + (3x6)]", False)
    transposed = specs_of(stacked(), splits={"experts.up": {"stack": True, "transposed": True}})["experts.up"]
    assert (transposed.matrices, transposed.transposed) == ("3 x (8x6)", True)


def test_the_last_pattern_that_fits_counts_and_a_tag_beats_it():
    model = Net(a=nn.Linear(6, 12), b=nn.Linear(6, 12))
    model.b.weight.muon_split = {"heads": 3, "per_head": True}
    specs = specs_of(model, splits={"*.weight": [4, 8], "a.*": [6, 6]})
    assert specs["a.weight"].matrices == "(6x6) x 2"
    assert specs["b.weight"].matrices == "(4x6) x 3"
    assert specs_of(built("Phi3", **dict(ATTENTION, pad_token_id=0)), splits={"*qkv_proj.weight": False})[
        "model.layers.0.self_attn.qkv_proj.weight"
    ].matrices == ""  # fmt: skip


@pytest.mark.parametrize(
    "split, message",
    [
        ([4, 4], r"sizes \[4, 4\] add up to 8, expected 12"),
        ({"heads": 5, "sizes": [2, 1]}, r"of 5 heads add up to 15, expected 12"),
        ({"heads": 5}, "5 heads do not divide the 12 outputs"),
        ({"size": [6, 6]}, "unknown key 'size', did you mean 'sizes'"),
        ({"sizes": [6.0, 6]}, "whole numbers"),
        ({"sizes": [12, 0]}, "whole numbers"),
        ({"stack": True}, "expected true for a 3-D parameter"),
        ({"stack": 5}, "divides the first dimension"),
        ({"per_head": 1}, "expected true or false"),
        ("qkv", "expected false, a list of sizes, or a dict"),
        (True, "expected false, a list of sizes, or a dict"),
    ],
)
def test_a_split_that_does_not_fit_is_refused_with_its_place(split, message):
    with pytest.raises(ValueError, match=message) as caught:
        param_groups(Net(a=nn.Linear(6, 12)), splits={"a.weight": split})
    assert "splits['a.weight']" in str(caught.value) and '"a.weight"' in str(caught.value)


def test_splits_that_name_nothing_or_only_parameters_of_adamw_are_refused():
    model = Net(a=nn.Linear(6, 12), e=nn.Embedding(6, 12))
    assert "splits='b.*' matches none" in refusal(model, splits={"b.*": [6, 6]})
    assert "gets AdamW (embedding)" in refusal(model, splits={"e.*": [6, 6]})
    assert "gets AdamW (bias)" in refusal(model, splits={"a.bias": [6, 6]})
    assert "expected a dict" in refusal(model, splits=["a.*"])
    assert "split_fused: got 1" in refusal(model, split_fused=1)
    model.e.weight.muon_split = [6, 6]
    assert "muon_split is set, and it gets AdamW (embedding)" in refusal(model)


def test_a_stack_that_is_included_or_tagged_must_say_how_it_is_stored():
    assert '"stack": true' in refusal(stacked(), include=["experts.up"])
    assert "does not say how its matrices are stored" in refusal(
        stacked(), include=["experts.up"], splits={"experts.up": {"stack": True}}
    )
    param = nn.Parameter(torch.zeros(3, 8, 6))
    param.use_muon, param.muon_split = True, {"stack": True, "transposed": False}
    spec = ParamSpec.from_tag(param, "parameter 0")
    assert (spec.rows, spec.cols, spec.matrices) == (24, 6, "3 x (8x6)")


def test_a_stack_of_one_expert_is_its_matrix():
    split = read_split({"stack": True, "transposed": True}, (1, 8, 6), None, "here")
    assert (split.stack, split.is_whole, split.blocks(8, 6)) == (1, True, [])


def test_parts_that_alternate_between_columns_are_refused():
    with pytest.raises(ValueError, match="alternate between columns"):
        read_split({"heads": 4, "sizes": [1, 1]}, (6, 8), True, "here")
    per_head = read_split({"heads": 4, "sizes": [1, 1], "per_head": True}, (6, 8), True, "here")
    assert len(per_head.blocks(6, 8)) == 8


def test_what_a_checkpoint_says_of_a_split_gives_it_again():
    for split in (Split(), Split(4, True, (3, 3)), Split(0, False, (2, 1), 4, True), Split(3)):
        shape = (4, 5, 6) if split.stack == 4 else (3, 5, 6) if split.stack == 3 else (12, 6)
        again = read_split(split.as_json(), shape, None if split.stack else False, "here")
        assert again == split


def test_the_table_and_the_count_say_the_matrices():
    table = param_groups(built("Mixtral", **dict(ATTENTION, num_local_experts=5))).table()
    assert "5x40x24" in table and "experts, stored (out, in): 5 x (20x24) x 2" in table
    assert "muon: 19 matrices" in table  # 4 of attention, 10 up and gate, 5 down
