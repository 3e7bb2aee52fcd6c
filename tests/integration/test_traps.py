"""Two libraries leave out the optimizer that they were given, without a word: an error says so before any training."""

import pytest

from tests.integration import hosts

TRAINER = """
import zeromuon
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from rows import rows
import cpu_ranks

zeromuon.register()
config = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}, **SECTION}
args = TrainingArguments(output_dir="out_trap", deepspeed=config, per_device_train_batch_size=4, max_steps=3, logging_steps=1,
                         save_strategy="no", report_to="none", accelerator_config={"use_configured_state": True})
model = AutoModelForCausalLM.from_pretrained("./model")
optimizer = zeromuon.ZeroMuon(zeromuon.param_groups(model), lr=1e-3)
Trainer(model=model, args=args, train_dataset=rows(), optimizers=(optimizer, None)).train()
"""

ACCELERATE = """
import deepspeed.ops.adam
import torch
import zeromuon
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM
from rows import rows
import cpu_ranks


class DeepSpeedCPUAdam(torch.optim.AdamW):  # the real one is compiled for two minutes on first use
    def __init__(self, params, adamw_mode, **options):
        super().__init__(params, **options)


deepspeed.ops.adam.DeepSpeedCPUAdam = DeepSpeedCPUAdam
config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, **FLAG,
          "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
model = AutoModelForCausalLM.from_pretrained("./model")
optimizer = zeromuon.ZeroMuon(zeromuon.param_groups(model), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows(), batch_size=4))
for step, batch in zip(range(3), loader):
    loss = model(**batch).loss
    print("loss", loss.item())
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
"""
NO_SECTION, SECTION = "SECTION = {}\n", 'SECTION = {"optimizer": {"type": "ZeroMuon", "params": {"lr": "auto"}}}\n'
NO_FLAG, FLAG = "FLAG = {}\n", 'FLAG = {"zero_force_ds_cpu_optimizer": False}\n'


def run(script, folder):
    (folder / "trap.py").write_text(script)
    return hosts.run_script(["trap.py"], folder)


@pytest.mark.parametrize(
    "script, stepped, cause",
    [
        pytest.param(NO_SECTION + TRAINER, "AdamW", "Trainer(optimizers=(optimizer, None))", id="Trainer"),
        pytest.param(SECTION + TRAINER, "another ZeroMuon", "with its options there", id="Trainer, both"),
        pytest.param(NO_FLAG + ACCELERATE, "DeepSpeedCPUAdam", '"zero_force_ds_cpu_optimizer": false', id="Accelerate"),
    ],
)
def test_an_optimizer_that_is_left_out_is_an_error_on_every_rank_that_names_cause_and_remedy(
    script, stepped, cause, document_folder
):
    outcome = run(script, document_folder)
    assert outcome.code == 1
    for rank in range(2):
        error = (
            f"[rank{rank}]: ValueError: a ZeroMuon was built for this model, and DeepSpeed would step {stepped} instead"
        )
        assert error in outcome.log, outcome.log[-6000:]
    assert cause in outcome.log and 'name "type": "ZeroMuon" in the optimizer section' in outcome.log
    assert outcome.losses == [], "nothing was trained before"


def test_accelerate_steps_an_optimizer_object_when_the_config_says_so(document_folder):
    outcome = run(FLAG + ACCELERATE, document_folder)
    assert outcome.code == 0, outcome.log[-6000:]
    assert [rank["steps"] for rank in outcome.ranks] == [3, 3]
