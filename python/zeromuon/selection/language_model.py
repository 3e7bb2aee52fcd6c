"""Which kind of language model a transformers configuration is, and the class that makes it. No torch until it is asked."""

from __future__ import annotations

MASKED, CAUSAL = "masked", "causal"


def detect_task(config) -> str:
    """MASKED or CAUSAL for a transformers configuration: by its architecture, else by what its model type offers.

    An encoder without a head, such as plain BertModel, is a masked LM. Raises ValueError if it is neither.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    named = " ".join(config.architectures or [])
    if "ForMaskedLM" in named:
        return MASKED
    if "ForCausalLM" in named or "LMHeadModel" in named or getattr(config, "is_decoder", False):
        return CAUSAL
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return MASKED
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return CAUSAL
    raise ValueError(
        f"model type {config.model_type} ({named or 'no architecture named'}): expected one that"
        " transformers trains as a masked or a causal LM, found neither; use another model"
    )


def auto_class(task: str):
    """The transformers class that loads a model of `task`."""
    import transformers

    return transformers.AutoModelForMaskedLM if task == MASKED else transformers.AutoModelForCausalLM
