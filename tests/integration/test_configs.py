"""Each file of configs/ is plain JSON, and trains."""

import json
import math
from types import SimpleNamespace

import pytest

from tests.integration import doc_blocks, hosts

FILES = sorted((hosts.ROOT / "configs").glob("zero3_*.json"))
BF16, FP16, FP32 = "torch.bfloat16", "torch.float16", "torch.float32"
# file -> (dtype of the model, optimizer offloaded, parameters offloaded)
MEANT = {
    "zero3_muon.json": (BF16, False, False),
    "zero3_muon_cpu.json": (FP32, False, False),
    "zero3_muon_fp16.json": (FP16, False, False),
    "zero3_muon_multi_gpu_offload.json": (BF16, True, True),
    "zero3_muon_offload.json": (BF16, True, False),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """file name -> what 2 ranks did with it; one launch for all files."""
    folder = tmp_path_factory.mktemp("configs")
    outcome = hosts.run_ranks("tests.integration.config_worker", folder, str(folder / "results.json"))
    assert outcome.code == 0, outcome.log[-6000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_config_is_json_without_comments_and_sets_stage_3_and_zeromuon(path):
    config = json.loads(path.read_text())
    assert config["zero_optimization"]["stage"] == 3
    assert config["optimizer"]["type"] == "ZeroMuon"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_config_is_recommended_in_the_document_and_checked_here(path):
    assert f"configs/{path.name}" in doc_blocks.DOCUMENT.read_text()
    assert path.name in MEANT


@pytest.mark.parametrize("name", MEANT)
def test_a_config_trains_two_steps_on_two_ranks_as_it_is_meant(name, trained):
    result = trained[name]
    assert (result["counters"]["steps"], result["counters"]["skipped_steps"]) == (2, 0)
    assert result["counters"]["newton_schulz_matrices"] > 0
    assert all(result["changed"].values()), result["changed"]
    assert all(map(math.isfinite, result["losses"]))
    assert (result["dtype"], result["offload_optimizer"], result["offload_param"]) == MEANT[name]
    assert result["accumulation"] == FP32, "gradients are summed in 32 bits"


def _arguments(config: dict) -> SimpleNamespace:
    """What the Trainer looks at, with its defaults."""
    return SimpleNamespace(
        world_size=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        max_grad_norm=1.0,
        learning_rate=1e-3,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        save_on_each_node=False,
        fp16="fp16" in config,
        fp16_full_eval=False,
        bf16="bf16" in config,
        bf16_full_eval=False,
        get_warmup_steps=lambda steps: steps // 10,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_trainer_fills_in_a_config_whose_rates_are_auto(path):
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config = json.loads(path.read_text())
    config["optimizer"]["params"].update(lr="auto", weight_decay="auto", betas="auto")
    filled, arguments = HfTrainerDeepSpeedConfig(config), _arguments(config)
    filled.trainer_config_process(arguments)
    filled.trainer_config_finalize(arguments, None, 50)
    assert filled.mismatches == [] and '"auto"' not in json.dumps(filled.config)
    assert filled.config["optimizer"]["params"]["lr"] == filled.config["scheduler"]["params"]["warmup_max_lr"] == 1e-3
