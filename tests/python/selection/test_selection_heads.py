"""Output heads, hidden matrices that are called like one, and adapters, on real transformers and peft models."""

import pytest
import torch
import transformers
from torch import nn

import zeromuon
from zeromuon.selection.rules import roles_for

BERT = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    vocab_size=96,
    max_position_embeddings=16,
)
LLAMA = dict(BERT, num_key_value_heads=2)
BART = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    vocab_size=96,
)


def roles(model) -> dict[str, str]:
    return {spec.name: spec.role for spec in roles_for(model).values()}


HEADS = {
    "qa_outputs.weight": lambda t: t.BertForQuestionAnswering(t.BertConfig(**BERT)),
    "score.weight": lambda t: t.LlamaForSequenceClassification(t.LlamaConfig(**LLAMA)),
    "classifier.weight": lambda t: t.BertForSequenceClassification(t.BertConfig(**BERT)),
    "classifier.out_proj.weight": lambda t: t.RobertaForSequenceClassification(t.RobertaConfig(**BERT)),
    "classification_head.out_proj.weight": lambda t: t.BartForSequenceClassification(t.BartConfig(**BART)),
    "cls.seq_relationship.weight": lambda t: t.BertForPreTraining(t.BertConfig(**BERT)),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_heads_of_other_tasks_get_adamw(head):
    found = roles(HEADS[head](transformers))
    assert found[head] == "adamw"
    assert sum(role == "muon" for role in found.values()) >= 6


def test_a_hidden_projection_called_output_gets_muon():
    config = transformers.LEDConfig(**BART, attention_window=8)
    found = roles(transformers.LEDForConditionalGeneration(config))
    hidden = [name for name in found if name.endswith("self_attn.output.weight")]
    assert hidden and all(found[name] == "muon" for name in hidden)


def test_the_dense_layer_of_a_classifier_stays_hidden():
    found = roles(HEADS["classifier.out_proj.weight"](transformers))
    assert found["classifier.dense.weight"] == "muon"


def test_an_embedding_of_positions_makes_no_head_of_a_hidden_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.first, self.last = nn.Embedding(16, 16), nn.Linear(8, 16), nn.Linear(16, 5)

    assert roles(Net())["first.weight"] == "muon"


# ---- adapters --------------------------------------------------------------------------------------


def with_lora(model, **options):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, **options))


def test_adapters_of_hidden_layers_get_muon_and_those_of_a_head_adamw():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False))
    found = roles(with_lora(model, target_modules=["q_proj", "lm_head"]))
    assert {role for name, role in found.items() if "q_proj" in name} == {"muon"}
    assert {role for name, role in found.items() if "lm_head" in name} == {"adamw"}


def test_adapters_of_stacked_experts_get_adamw():
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=2, num_experts_per_tok=1)
    model = with_lora(
        transformers.MixtralForCausalLM(config),
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj"],
    )
    found = roles(model)
    experts = {name: role for name, role in found.items() if "experts" in name}
    assert experts and set(experts.values()) == {"adamw"}
    assert {role for name, role in found.items() if "q_proj" in name} == {"muon"}


# ---- groups that were changed ------------------------------------------------------------------------


def test_parameters_that_were_moved_between_groups_are_refused():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    groups = zeromuon.param_groups(net)
    groups[1]["params"].append(groups[0]["params"].pop())
    with pytest.raises(ValueError, match="was changed"):
        zeromuon.ZeroMuon(groups)


@pytest.mark.parametrize("key, value", [("lr", -1.0), ("lr", "auto"), ("weight_decay", float("nan")), ("lr", None)])
def test_values_of_a_group_are_checked_as_those_of_the_optimizer(key, value):
    net = nn.Sequential(nn.Linear(4, 6))
    net[0].weight.use_muon, net[0].bias.use_muon = True, False
    with pytest.raises(ValueError, match=f"parameter group 0: {key}"):
        zeromuon.ZeroMuon([{"params": list(net.parameters()), key: value}])
    assert torch.isfinite(net[0].weight).all()
