"""Keys of a DeepSpeed configuration that nobody would read: DeepSpeed passes over one that it does not know. No torch."""

from __future__ import annotations

from ...base.words import did_you_mean
from ...deepspeed import muon_params
from ...optimizer.options import TYPE_MUON_OPTIONS, option_names

# What DeepSpeed 0.18 and 0.19 read. It refuses unknown keys of zero_optimization, bf16 and fp16 itself.
_TOP_LEVEL = """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile
    compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last datastates_ckpt
    disable_allgather disable_python_gc dump_state eigenvalue elasticity expert_parallel flops_profiler fp16
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor graph_harvesting
    hybrid_engine log_level managed_gradient_accumulation memory_breakdown nebula optimizer pipeline prescale_gradients
    progressive_layer_drop quantize_training scheduler seq_parallel_communication_data_type sparse_attention
    sparse_gradients steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
    train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb
    weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
""".split()
_SECTIONS = {"optimizer": ("type", "params", "legacy_fusion"), "scheduler": ("type", "params")}


def check_keys(config: dict, whose: str) -> None:
    """Raises ValueError for a key that neither DeepSpeed nor the optimizer knows, with the nearest that it knows. whose: the
    file's name, for the message."""
    _check(config, _TOP_LEVEL, whose, "")
    for section, known in _SECTIONS.items():
        _check(config.get(section, {}), known, whose, f"{section}.")
    optimizer = config.get("optimizer", {})
    if (known := _options_of(optimizer.get("type"))) is not None:
        _check(optimizer.get("params", {}), known, whose, "optimizer.params.")


def _options_of(type_: str | None) -> list[str] | None:
    """None for an optimizer that is not ours."""
    if type_ == "ZeroMuon":
        return [*option_names(), *muon_params.SELECTION_KEYS]
    if type_ == "Muon":
        return [*muon_params.KEYS, *muon_params.SELECTION_KEYS, *TYPE_MUON_OPTIONS]
    return None


def _check(given: dict, known, whose: str, path: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{whose}: {path.rstrip('.')} is {given!r}, expected a JSON object")
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known, f"; the keys there are {', '.join(known)}")
            raise ValueError(f"{whose}: {path}{key} is no key that is read: correct its name, or leave it out{hint}")
