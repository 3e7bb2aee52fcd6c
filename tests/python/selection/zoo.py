"""The zoo: one model of every family of transformers, on the meta device and few layers deep, as its config is by default.

Which class stands for a family is the first that the tasks below name.
"""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from zeromuon.selection.rules import ParamSpec
from zeromuon.selection.table import common_name, without_numbers

VERSION = "5.23.0"  # of transformers, from which the file was written
ROLES = Path(__file__).with_name("zoo_roles.txt")
LAYERS = 4  # the most that a model gets
TASKS = (
    "CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "CTC", "OBJECT_DETECTION",
    "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "DEPTH_ESTIMATION", "UNIVERSAL_SEGMENTATION", "TIME_SERIES_PREDICTION", "",
)  # fmt: skip
_DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
# Reasons that say nothing of a model.
_COMMON = ("bias", "norm", "not a matrix", "embedding")


_PARTS = ("_text", "_vision", "_vision_model", "_audio", "_encoder", "_decoder", "_text_model", "_transcribe_asr_audio")


def classes() -> dict[str, str]:
    """Model type -> name of the class that stands for it; without towers of others that stand for themselves."""
    found: dict[str, str] = {}
    for task in TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES")
        for kind, name in names.items():
            if task or not kind.endswith(_PARTS):
                found.setdefault(kind, name if isinstance(name, str) else name[0])
    return found


def built(kind: str, name: str) -> torch.nn.Module | None:
    """The model on the meta device; None where its default config makes none, or needs a package that is not here."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)
            config = _shallow(CONFIG_MAPPING[kind]())
            made = getattr(transformers, name)
            return made._from_config(config) if hasattr(made, "_from_config") else made(config)
    except Exception:  # foreign code, of which only some builds a model from its defaults
        return None
    finally:
        logging.disable(logging.NOTSET)


def _shallow(config):
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PreTrainedConfig)]
    for part in [config, *inner]:
        for name in (*_DEPTHS, "layer_types", "mlp_layer_types"):
            try:
                given = getattr(part, name, None)
                if isinstance(given, list):
                    setattr(part, name, given[:LAYERS])
                elif isinstance(given, int) and given > LAYERS:
                    setattr(part, name, LAYERS)
            except Exception:  # some compute it from others
                continue
    return config


def line(name: str, specs: list[ParamSpec]) -> str:
    """What a model's roles are: how many parameters are Muon's, and of how many matrices; the matrices that are AdamW's, but
    for embeddings, with the reason."""
    muon = [spec for spec in specs if spec.role == "muon"]
    matrices = sum(len(spec.blocks) or 1 for spec in muon)
    alike: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        if spec.role == "adamw" and spec.reason not in _COMMON:
            reason = re.sub(r" (\(|of |with ).*", "", spec.reason)
            alike.setdefault((without_numbers(spec.name), reason), []).append(spec.name)
    others: dict[str, list[str]] = {}
    for (_, reason), names in alike.items():
        others.setdefault(reason, []).append(common_name(names))
    words = [f"{reason}: {', '.join(names)}" for reason, names in others.items()]
    return " | ".join([name, f"{len(muon)} muon, {matrices} matrices", *words])
