"""Every host of docs/integration.md on 2 ranks, started by the document's own command in --full.

Without it torchrun starts the unmodified script alone; the ranks of the others are forked.
"""

import math
import shutil

import pytest

from tests.integration import hosts

MATRICES = 14  # of the tiny model: 7 in each of 2 layers
REST = 7  # embedding, head, 5 norms
# run=NAME of the document -> (parameters with Muon, parameters with AdamW, scheduler)
HOSTS = {
    "plain": (MATRICES, REST, "NoneType"),
    "object": (MATRICES - 2, REST + 2, "NoneType"),
    "trainer": (MATRICES, REST, "WarmupDecayLR"),
    "unmodified": (MATRICES, REST, "LambdaLR"),
    "deepspeed_module": (MATRICES, REST, "LambdaLR"),
    "accelerate": (MATRICES, REST, "NoneType"),
    "sft": (MATRICES, REST, "WarmupDecayLR"),
    "lora": (8, 0, "WarmupDecayLR"),
}
# Hosts in which rank 0 alone prints the loss, when the host counts the ranks right.
COUNT_RANKS = ("trainer", "unmodified", "deepspeed_module", "accelerate", "sft", "lora")


@pytest.fixture(scope="session")
def outcome_of(document_folder, pytestconfig):
    """name -> Outcome; each block is run once."""
    done, as_written = {}, "not full" not in pytestconfig.getoption("markexpr")

    def run_once(name):
        if name not in done:
            done[name] = hosts.run_block(name, document_folder, as_written)
        assert done[name].code == 0, done[name].log[-6000:]
        return done[name]

    return run_once


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name == "deepspeed_module" else name for name in HOSTS]
)
def test_a_host_steps_zeromuon_three_times_on_two_ranks_which_end_with_the_same_weights(name, outcome_of):
    outcome = outcome_of(name)
    muon, adamw, scheduler = HOSTS[name]
    assert len(outcome.ranks) == 2
    for rank in outcome.ranks:
        roles = list(rank["roles"].values())
        assert (rank["optimizer"], rank["steps"]) == ("zeromuon.optimizer.optimizer.ZeroMuon", 3)
        assert (roles.count("muon"), roles.count("adamw"), rank["scheduler"]) == (muon, adamw, scheduler)
        assert rank["digests"][0] != rank["digests"][-1], "the weights did not change"
    assert outcome.ranks[0]["digests"] == outcome.ranks[1]["digests"]
    assert len(outcome.losses) == (3 if name in COUNT_RANKS else 6)
    assert all(map(math.isfinite, outcome.losses)), outcome.losses


def test_auto_values_of_the_trainer_reach_the_optimizer_and_its_scheduler(outcome_of):
    rank = outcome_of("trainer").ranks[0]
    told = {key: rank["options"][key] for key in ("lr", "weight_decay", "betas", "eps", "scale")}
    assert told == {"lr": 1e-3, "weight_decay": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "scale": "match_rms_adamw"}
    # DeepSpeed's warm-up takes 2 steps at least, and the first two at the lowest rate.
    assert rank["rates"] == [[0, 0], [0, 0], [1e-3, 1e-3]]


def test_auto_values_and_the_rates_of_hugging_face_reach_the_type_muon_of_an_unmodified_script(outcome_of):
    rank = outcome_of("unmodified").ranks[0]
    assert rank["options"]["scale"] == "original" and rank["options"]["betas"] == [0.9, 0.999]
    assert rank["options"]["lr"] == rank["options"]["adam_lr"] == 1e-3
    assert [rate for rate, _ in rank["rates"]] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_both_launchers_of_an_unmodified_script_train_the_same_bits(outcome_of):
    assert outcome_of("unmodified").ranks[0]["digests"] == outcome_of("deepspeed_module").ranks[0]["digests"]


def test_a_resumed_trainer_ends_with_the_bits_of_one_that_was_never_stopped(outcome_of, document_folder):
    whole = outcome_of("trainer")
    shutil.rmtree(document_folder / "out_trainer" / "checkpoint-3")
    resumed = outcome_of("trainer_resume")
    assert [rank["steps"] for rank in resumed.ranks] == [1, 1]
    assert resumed.losses == whole.losses[2:]
    for before, after in zip(whole.ranks, resumed.ranks):
        assert after["digests"] == before["digests"][2:]
        assert after["rates"] == before["rates"][2:]


def test_an_optimizer_object_keeps_its_exclusions_and_its_ratio_of_rates(outcome_of):
    outcome = outcome_of("object")
    rank = outcome.ranks[0]
    assert {rank["roles"][f"model.layers.{i}.self_attn.o_proj.weight"] for i in range(2)} == {"adamw"}
    assert (rank["options"]["lr"], rank["options"]["adam_lr"]) == (1e-3, 3e-4)
    assert "owner" in outcome.log, "attach(engine) prints the plan"


def test_lora_trains_the_adapters_with_muon_and_saves_them_alone(outcome_of, document_folder):
    from safetensors import safe_open

    assert all(".lora_" in name for name in outcome_of("lora").ranks[0]["roles"])
    with safe_open(document_folder / "out_lora" / "adapter_model.safetensors", "pt") as saved:
        sizes = {name: saved.get_tensor(name).numel() for name in saved.keys()}
    assert len(sizes) == 8 and all(sizes.values())


def test_both_commands_convert_the_checkpoint_of_the_plain_script(outcome_of, document_folder):
    import torch
    from transformers import AutoModelForCausalLM

    outcome_of("plain"), outcome_of("convert")
    whole = torch.load(document_folder / "out_fp32" / "pytorch_model.bin")
    before = AutoModelForCausalLM.from_pretrained(document_folder / "model").state_dict()
    assert whole.keys() == before.keys()
    assert all(
        whole[name].shape == before[name].shape and not torch.equal(whole[name], before[name]) for name in before
    )
    slices = document_folder / "out_plain" / "universal" / "zero"
    assert {folder.name for folder in slices.iterdir() if folder.is_dir()} == set(before)


def test_accelerate_saves_the_state_of_the_run(outcome_of, document_folder):
    outcome_of("accelerate")
    saved = document_folder / "out_accelerate" / "pytorch_model"
    assert len(list(saved.glob("*optim_states.pt"))) == 2
