"""Who gets Muon: every rule on the module types it is about, and on real transformers models built from configs."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers
from torch import nn

from zeromuon.selection.rules import ParamSpec, param_groups, roles_for

TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
LLAMA = dict(TINY, vocab_size=100, num_key_value_heads=2)


def specs_of(model, **patterns) -> dict[str, ParamSpec]:
    return {spec.name: spec for spec in roles_for(model, **patterns).values()}


def muon_names(model, **patterns) -> set[str]:
    return {name for name, spec in specs_of(model, **patterns).items() if spec.role == "muon"}


def refusal(model, **patterns) -> str:
    with pytest.raises(ValueError) as caught:
        param_groups(model, **patterns)
    return str(caught.value)


def linear_weights(model, but=()) -> set[str]:
    """Names of the weights of every nn.Linear whose name has none of the parts in `but`."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {f"{name}.weight" for name in linears if not set(name.split(".")) & set(but)}


def bert(kind=None, **config):
    sizes = {**TINY, "vocab_size": 100, "max_position_embeddings": 16, **config}
    return (kind or transformers.BertForMaskedLM)(transformers.BertConfig(**sizes))


def gpt2():
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=12, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


class Net(nn.Module):
    """Named children as a module without a forward."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


# ---- real models ---------------------------------------------------------------------------------


def test_bert_for_masked_lm_gives_muon_its_layers_and_the_head_transform_but_not_the_decoder():
    model = bert()
    specs = specs_of(model)
    assert muon_names(model) == linear_weights(model, but={"decoder"})
    assert specs["cls.predictions.transform.dense.weight"].role == "muon"
    assert specs["bert.embeddings.word_embeddings.weight"].reason == "tied with cls.predictions.decoder.weight"
    assert specs["bert.embeddings.position_embeddings.weight"].reason == "embedding"


def test_an_untied_masked_lm_decoder_is_the_output_head():
    specs = specs_of(bert(tie_word_embeddings=False))
    assert specs["cls.predictions.decoder.weight"].reason == "output head (get_output_embeddings)"
    assert specs["bert.embeddings.word_embeddings.weight"].reason == "embedding"


def test_the_pooler_is_hidden_and_the_classifier_is_an_output_head():
    specs = specs_of(bert(transformers.BertForSequenceClassification))
    assert specs["bert.pooler.dense.weight"].role == "muon"
    assert specs["classifier.weight"].reason == 'output head (named "classifier")'


def test_a_bare_encoder_as_wide_as_its_position_table_has_no_output_head():
    model = bert(transformers.BertModel, hidden_size=64, max_position_embeddings=64)
    assert muon_names(model) == linear_weights(model)


def test_gpt2_conv1d_weights_are_muon_with_transposed_storage_and_its_tied_head_is_adamw():
    specs = specs_of(gpt2())
    fused = specs["transformer.h.0.attn.c_attn.weight"]
    assert (fused.role, fused.shape, fused.rows, fused.cols, fused.transposed) == ("muon", (32, 96), 32, 96, True)
    assert specs["transformer.wte.weight"].reason == "tied with lm_head.weight"
    assert specs["transformer.wpe.weight"].role == "adamw"
    assert sum(spec.role == "muon" for spec in specs.values()) == 12 * 4


@pytest.mark.parametrize("tied", [False, True])
def test_llama_gives_muon_all_but_embedding_and_head_and_its_gate_proj_is_no_router(tied):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied))
    specs = specs_of(model)
    assert muon_names(model) == linear_weights(model, but={"lm_head"})
    assert "model.layers.0.mlp.gate_proj.weight" in muon_names(model)
    reason = specs["model.embed_tokens.weight"].reason
    assert reason == ("tied with lm_head.weight" if tied else "embedding")
    assert ("lm_head.weight" in specs) is not tied


def test_the_output_head_is_found_inside_a_wrapped_model():
    inner = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    specs = specs_of(Net(policy=inner, value=nn.Linear(32, 32)))
    assert specs["policy.lm_head.weight"].reason == "output head (get_output_embeddings)"
    assert specs["value.weight"].role == "muon"


def test_mixtral_routers_are_adamw_and_its_experts_muon():
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=4))
    specs = specs_of(model)
    assert specs["model.layers.0.mlp.gate.weight"].reason == "router"
    assert specs["model.layers.0.mlp.experts.down_proj"].reason == "experts, stored (out, in)"
    assert {name.split(".")[-2] for name in muon_names(model)} == {"q_proj", "k_proj", "v_proj", "o_proj", "experts"}


def test_qwen_moe_shared_expert_is_muon_and_its_gate_is_a_router():
    config = transformers.Qwen2MoeConfig(
        **LLAMA, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16
    )
    specs = specs_of(transformers.Qwen2MoeForCausalLM(config))
    assert specs["model.layers.0.mlp.shared_expert_gate.weight"].reason == "router"
    assert specs["model.layers.0.mlp.shared_expert.gate_proj.weight"].role == "muon"
    assert specs["model.layers.0.self_attn.q_proj.bias"].reason == "bias"


def test_vit_patch_convolution_tokens_and_classifier_are_adamw():
    config = transformers.ViTConfig(**TINY, image_size=8, patch_size=4)
    model = transformers.ViTForImageClassification(config)
    specs = specs_of(model)
    assert muon_names(model) == linear_weights(model, but={"classifier"})
    assert specs["vit.embeddings.patch_embeddings.projection.weight"].reason == "patch or stem convolution"
    assert specs["vit.embeddings.cls_token"].reason == "token or table of ViTEmbeddings"


# ---- rules ---------------------------------------------------------------------------------------


def test_convolutions_are_seen_as_out_times_rest_but_stem_and_depthwise_are_adamw():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3),
        nn.Conv1d(16, 4, 5),
        nn.ConvTranspose2d(4, 6, 2),
    )
    specs = specs_of(model)
    assert specs["0.weight"].reason == "patch or stem convolution"
    assert specs["1.weight"].reason == "depthwise convolution"
    assert (specs["2.weight"].rows, specs["2.weight"].cols) == (16, 8 * 9)
    assert (specs["3.weight"].rows, specs["3.weight"].cols, specs["3.weight"].role) == (4, 80, "muon")
    assert (specs["4.weight"].rows, specs["4.weight"].cols, specs["4.weight"].transposed) == (4, 24, True)


def test_a_weight_is_tied_where_an_embedding_or_a_head_shares_it_and_hidden_layers_that_share_one_are_hidden():
    first, second, shared = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    table, lm_head, inner = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    lm_head.weight = inner.weight
    specs = specs_of(Net(first=first, second=second, third=shared, fourth=shared, inner=inner, lm_head=lm_head))
    assert (specs["first.weight"].role, specs["third.weight"].role) == ("muon", "muon")
    assert specs["inner.weight"].reason == "tied with lm_head.weight"
    inner.weight = table.weight
    specs = specs_of(Net(first=first, inner=inner, table=table))
    assert specs["inner.weight"].reason == "tied with table.weight"


@pytest.mark.parametrize("name", ["lm_head", "head", "output", "classifier", "score", "embed_out"])
def test_a_linear_named_like_a_head_is_an_output_head(name):
    specs = specs_of(Net(body=nn.Linear(4, 4), **{name: nn.Linear(4, 7)}))
    assert specs[f"{name}.weight"].reason == f'output head (named "{name}")'
    assert specs["body.weight"].role == "muon"


def test_a_head_by_another_name_is_known_by_the_rows_of_the_embedding_and_only_the_last_one_counts():
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16))
    specs = specs_of(model)
    assert specs["3.weight"].reason == "output head (as many rows as 0)"
    assert specs["1.weight"].role == "muon" and specs["2.weight"].role == "muon"


def test_attention_in_projections_of_torch_are_hidden_linear_weights():
    specs = specs_of(nn.TransformerEncoderLayer(8, 2, 16))
    assert specs["self_attn.in_proj_weight"].reason == "hidden Linear (attention in-projection)"
    assert (specs["self_attn.in_proj_weight"].rows, specs["self_attn.in_proj_weight"].cols) == (24, 8)
    assert specs["self_attn.out_proj.weight"].role == "muon"
    apart = specs_of(nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True))
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight"} < {n for n, s in apart.items() if s.role == "muon"}
    assert apart["bias_k"].reason == "bias"


def test_a_gate_is_a_router_only_beside_experts():
    experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    specs = specs_of(Net(moe=Net(gate=Net(wg=nn.Linear(4, 2)), experts=experts), mlp=Net(gate=nn.Linear(4, 8))))
    assert specs["moe.gate.wg.weight"].reason == "router"
    assert specs["moe.experts.1.weight"].role == "muon"
    assert specs["mlp.gate.weight"].role == "muon"


def test_a_module_called_router_is_a_router():
    specs = specs_of(Net(router=Net(layer=nn.Linear(4, 2)), body=nn.Linear(4, 4)))
    assert specs["router.layer.weight"].reason == "router"


def test_bare_parameters_of_unknown_modules_and_recurrent_weights_are_adamw_with_the_reason():
    model = Net(body=nn.Linear(4, 4), cell=nn.LSTM(4, 4), own=Net(matrix=nn.Parameter(torch.zeros(4, 4))))
    specs = specs_of(model)
    assert specs["own.matrix"].reason == "bare parameter of Net"
    assert specs["cell.weight_ih_l0"].reason == "bare parameter of LSTM"


def test_biases_of_any_ndim_and_norms_are_adamw_without_decay():
    model = Net(body=nn.Linear(4, 4), norm=nn.LayerNorm((4, 4)), own=Net(gate_up_bias=nn.Parameter(torch.zeros(4, 4))))
    specs = specs_of(model)
    assert (specs["own.gate_up_bias"].reason, specs["own.gate_up_bias"].decay) == ("bias", False)
    assert (specs["norm.weight"].reason, specs["norm.weight"].decay) == ("norm", False)
    assert (specs["body.bias"].decay, specs["body.weight"].decay) == (False, True)


def test_a_linear_whose_class_name_says_norm_is_still_a_hidden_linear():
    class NormalisedLinear(nn.Linear):
        pass

    assert muon_names(Net(body=NormalisedLinear(4, 4))) == {"body.weight"}


def test_lora_factors_are_hidden_linear_weights_and_the_frozen_base_is_left_out():
    base = nn.Linear(8, 8)
    base.requires_grad_(False)
    factors = {
        "lora_A": nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)}),
        "lora_B": nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)}),
    }
    groups = param_groups(Net(q_proj=Net(base_layer=base, **factors)))
    assert [s.name for s in groups.specs] == ["q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"]
    assert [group["role"] for group in groups] == ["muon"]
    assert groups.frozen == 2 and "frozen, left out: 2" in groups.table()


def test_a_classifier_kept_whole_by_peft_is_an_output_head():
    wrapped = Net(modules_to_save=nn.ModuleDict({"default": nn.Linear(4, 2)}))
    specs = specs_of(Net(body=nn.Linear(4, 4), classifier=wrapped))
    assert specs["classifier.modules_to_save.default.weight"].reason == 'output head (named "classifier")'


# ---- what the user says ---------------------------------------------------------------------------


def test_use_muon_set_by_the_user_beats_rules_and_patterns():
    model = Net(embed=nn.Embedding(9, 4), body=nn.Linear(4, 4), other=nn.Linear(4, 4))
    model.embed.weight.use_muon = True
    model.body.weight.use_muon = False
    specs = specs_of(model, include=["body*weight"], exclude=["embed*"])
    assert (specs["embed.weight"].role, specs["embed.weight"].reason) == ("muon", "use_muon set by user")
    assert (specs["embed.weight"].rows, specs["embed.weight"].cols) == (9, 4)
    assert specs["body.weight"].role == "adamw"


def test_include_and_exclude_beat_the_rules_and_exclude_beats_include():
    model = Net(a=nn.Embedding(9, 4), b=nn.Embedding(5, 4), c=nn.Linear(4, 4), d=nn.Linear(4, 4))
    specs = specs_of(model, include=["[ab].weight"], exclude=["b.*", "d.weight"])
    assert {name for name, spec in specs.items() if spec.role == "muon"} == {"a.weight", "c.weight"}
    assert specs["a.weight"].reason == "include pattern '[ab].weight'"
    assert specs["b.weight"].reason == "exclude pattern 'b.*'"


def test_a_single_pattern_may_be_given_as_a_string():
    assert muon_names(Net(a=nn.Embedding(9, 4)), include="a.weight") == {"a.weight"}


def test_a_pattern_may_use_any_name_of_a_tied_parameter():
    model = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    assert muon_names(model, include=["b.weight"]) == {"a.weight"}


def test_a_pattern_that_matches_nothing_names_the_nearest_names():
    message = refusal(gpt2(), include=["transformer.h.0.atn.c_attn.weight"])
    assert "include='transformer.h.0.atn.c_attn.weight' matches none" in message
    assert "transformer.h.0.attn.c_attn.weight" in message


def test_a_pattern_that_matches_only_frozen_parameters_matches_nothing():
    model = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.requires_grad_(False)
    assert "trainable" in refusal(model, exclude=["b.*"])


def test_a_pattern_that_is_no_string_is_refused():
    assert "expected patterns" in refusal(Net(a=nn.Linear(4, 4)), include=[3])


def test_a_pattern_or_tag_that_gives_muon_a_vector_is_refused():
    model = Net(a=nn.Linear(4, 4))
    assert 'parameter "a.bias" of shape (4,)' in refusal(model, include=["a.*"])
    model.a.bias.use_muon = True
    assert "use_muon set by user" in refusal(model)


def test_a_pattern_that_gives_muon_an_unknown_expert_stack_is_refused():
    model = Net(a=nn.Linear(4, 4), experts=Net(up=nn.Parameter(torch.zeros(2, 4, 4))))
    assert "nothing says how they lie in it" in refusal(model, include=["experts.up"])


def test_a_tag_that_is_no_boolean_is_refused():
    model = Net(a=nn.Linear(4, 4))
    model.a.weight.use_muon = "yes"
    assert "use_muon is 'yes', expected True or False" in refusal(model)


def test_nothing_eligible_is_an_error_that_says_what_was_found():
    message = refusal(Net(embed=nn.Embedding(9, 4), norm=nn.LayerNorm(4)))
    assert "nothing is eligible for Muon" in message and "1 embedding" in message and "include" in message


def test_parameters_instead_of_a_module_are_refused():
    assert "pass the model itself" in refusal(nn.Linear(4, 4).parameters())


def test_the_spec_of_a_tagged_parameter_without_a_module_is_its_rows_and_the_rest():
    param = nn.Parameter(torch.zeros(4, 3, 2, 2))
    param.use_muon = True
    spec = ParamSpec.from_tag(param, "parameter 0")
    assert (spec.role, spec.rows, spec.cols, spec.decay, spec.transposed) == ("muon", 4, 12, True, False)
    stack = nn.Parameter(torch.zeros(4, 3, 2))
    stack.use_muon = True
    with pytest.raises(ValueError, match="3-D stack"):
        ParamSpec.from_tag(stack, "parameter 1")


# ---- groups and table -----------------------------------------------------------------------------


def test_groups_are_muon_then_adamw_with_specs_parallel_to_params_in_model_order():
    model = gpt2()
    groups = param_groups(model)
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert [group["role"] for group in groups] == ["muon", "adamw"]
    for group in groups:
        names = [by_id[id(p)] for p in group["params"]]
        assert names == [spec.name for spec in group["specs"]]
        assert names == [name for name in by_id.values() if name in set(names)]
    assert sum(len(group["params"]) for group in groups) == len(by_id)


def test_the_table_folds_layers_into_one_row_and_counts_matrices_and_parameters():
    table = param_groups(gpt2()).table().splitlines()
    assert table[0].split() == ["role", "count", "name", "shape", "reason"]
    row = next(line for line in table if "c_fc.weight" in line)
    assert row.split() == "muon 12 transformer.h.[0-11].mlp.c_fc.weight 32x128 hidden Conv1D, stored (in, out)".split()
    assert any(line == "muon: 72 matrices, 0.147 M parameters" for line in table)
    assert len(table) < 25


def test_rows_that_skip_a_layer_are_folded_with_a_star():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert "*.weight" in param_groups(model).table()


@pytest.mark.parametrize(("rank", "printed"), [("0", True), ("1", False)])
def test_only_rank_0_prints_the_table(monkeypatch, capsys, rank, printed):
    monkeypatch.setenv("RANK", rank)
    param_groups(Net(a=nn.Linear(4, 4)))
    assert ("hidden Linear" in capsys.readouterr().out) is printed


def test_saved_groups_say_role_shape_and_reason_of_every_parameter(tmp_path):
    param_groups(Net(a=nn.Linear(4, 3))).save(tmp_path / "groups.json")
    weight, bias = json.loads((tmp_path / "groups.json").read_text())["parameters"]
    assert (weight["name"], weight["role"], weight["shape"], weight["rows"]) == ("a.weight", "muon", [3, 4], 3)
    assert bias["reason"] == "bias"


# ---- zero.Init ------------------------------------------------------------------------------------


def test_under_zero_init_shapes_are_the_true_ones_and_roles_the_same(tmp_path):
    script = tmp_path / "partitioned.py"
    script.write_text(
        textwrap.dedent("""
        import deepspeed, deepspeed.ops
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        import transformers
        from zeromuon.selection.rules import roles_for
        deepspeed.init_distributed("gloo", rank=0, world_size=1, auto_mpi_discovery=False,
                                   init_method=f"file://{__file__}.store")
        config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=16)
        plain = transformers.GPT2LMHeadModel(config)
        with deepspeed.zero.Init():
            partitioned = transformers.GPT2LMHeadModel(config)
        assert tuple(partitioned.transformer.wte.weight.shape) == (0,)
        assert list(roles_for(plain).values()) == list(roles_for(partitioned).values())
        print("the same")
    """)
    )
    env = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TORCHDYNAMO_DISABLE": "1",
    }
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same" in done.stdout


class Bracketed(nn.Module):
    """Its parameters are called ad.c[0].weight and hidden.weight."""

    def __init__(self):
        super().__init__()
        self.ad = nn.Module()
        self.ad.add_module("c[0]", nn.Linear(8, 8, bias=False))
        self.hidden = nn.Linear(8, 8, bias=False)


def test_a_name_with_brackets_is_itself_before_it_is_a_pattern():
    groups = param_groups(Bracketed(), exclude=["ad.c[0].weight"])
    assert [spec.name for group in groups for spec in group["specs"] if spec.role == "adamw"] == ["ad.c[0].weight"]


@pytest.mark.parametrize("embeddings", [lambda self, layer: None, lambda self: 1 / 0], ids=["an argument", "an error"])
def test_a_model_that_cannot_say_its_embeddings_says_nothing(embeddings, monkeypatch):
    monkeypatch.setattr(Bracketed, "get_input_embeddings", embeddings, raising=False)
    assert len(param_groups(Bracketed())[0]["params"]) > 0
