"""The model and tokenizer of a run, with what is random in them said."""

from __future__ import annotations

from dataclasses import dataclass

from ...selection.language_model import MASKED, auto_class, detect_task


@dataclass(frozen=True)
class LoadedModel:
    """model: a transformers module in fp32 on the CPU, the same on every rank."""

    model: object
    tokenizer: object
    task: str
    random_parameters: tuple[str, ...]

    def describe(self, seed: int) -> str:
        kind = "masked" if self.task == MASKED else "causal"
        sentence = f"{type(self.model).__name__}: a {kind} language model"
        if self.random_parameters:
            sentence += (
                f"; {len(self.random_parameters)} parameters are not in the folder and start at random (seed {seed}): "
            )
            sentence += ", ".join(self.random_parameters)
        return sentence


def load_model(path: str, seed: int) -> LoadedModel:
    """Loads the folder `path` in fp32; parameters that it lacks are drawn from `seed`.

    Raises ValueError if its task is neither masked nor causal LM.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    task = detect_task(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    model, info = auto_class(task).from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    return LoadedModel(model, tokenizer, task, tuple(sorted(info["missing_keys"])))
