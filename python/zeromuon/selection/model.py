"""What the rules of who gets Muon need to know of a model as a whole: owners of parameters, heads, routers, adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

# Names of output heads. The second kind is also in use inside layers, and counts only where the model names no head.
_HEAD_NAMES = ("lm_head", "embed_out", "score", "qa_outputs", "seq_relationship")
_MAYBE_HEAD_NAMES = ("head", "output", "classifier", "summary", "fc")
_CLASSIFIERS = ("classifier", "classification_head")  # their out_proj is a head
_ADAPTER = re.compile(r"\.lora_[A-Za-z_]+\.[^.]+$|\.lora_[A-Za-z_]+$")  # of peft, below the module it adapts
_STEM = re.compile(r"patch_?embed|(^|_)stem(_|$)", re.IGNORECASE)
_ROUTER_CLASS = re.compile(r"Router$|TopKGat(e|ing)$")


@dataclass(frozen=True)
class Owner:
    """A module that holds the parameter, and under which name."""

    path: str
    module: nn.Module
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.path}.{self.attribute}" if self.path else self.attribute


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D, a Linear whose weight is stored (in, out); known by name, so that transformers may be absent."""
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__)


def true_shape(param) -> tuple[int, ...]:
    return tuple(getattr(param, "ds_shape", param.shape))


class ModelFacts:
    """What the rules need to know of the model as a whole; read once.

    trainable: (parameter, its owners) in the model's order; a parameter with two owners is tied. Two names of one
    module object are one owner.
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        owners: dict[int, tuple] = {}
        for path, module in self.modules.items():
            for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
                owners.setdefault(id(p), (p, []))[1].append(Owner(path, module, attribute))
        self.trainable = [entry for entry in owners.values() if entry[0].requires_grad]
        self.frozen = len(owners) - len(self.trainable)
        self._first_convolution = next((p for p, m in self.modules.items() if isinstance(m, _ConvNd)), None)
        self.head_reasons = self._find_heads()

    @staticmethod
    def embedding_reason(owner: Owner) -> str | None:
        is_embedding = isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag))
        return "embedding" if is_embedding and owner.attribute == "weight" else None

    def router_reason(self, path: str) -> str | None:
        """A router is called so, is of a class called so, or is a gate beside `experts`."""
        parts = path.split(".") if path else []
        for depth, part in enumerate(parts):
            parent = self.modules.get(".".join(parts[:depth]))
            module = self.modules.get(".".join(parts[: depth + 1]))
            is_gate = part == "gate" or part.endswith("_gate")
            beside_experts = parent is not None and "experts" in parent._modules
            if part == "router" or (is_gate and beside_experts) or _ROUTER_CLASS.search(type(module).__name__):
                return "router"
        return None

    def convolution_reason(self, owner: Owner) -> str | None:
        module = owner.module
        if not isinstance(module, _ConvNd):
            return None
        if module.groups == module.in_channels and module.groups > 1:
            return "depthwise convolution"
        is_stem = owner.path == self._first_convolution or any(map(_STEM.search, owner.path.split(".")))
        return "patch or stem convolution" if is_stem else None

    def _find_heads(self) -> dict[str, str]:
        """Path of each output head -> reason."""
        asked = self._ask("get_output_embeddings")
        heads = {}
        for path, module in self.modules.items():
            if not (isinstance(module, (nn.Linear, _ConvNd)) or is_conv1d(module)):
                continue
            if any(weight is getattr(module, "weight", None) for weight in asked):
                heads[path] = "output head (get_output_embeddings)"
            elif _is_named_as_head(path, _HEAD_NAMES if asked else (*_HEAD_NAMES, *_MAYBE_HEAD_NAMES)):
                heads[path] = f'output head (named "{_unwrapped(path).rpartition(".")[2]}")'
        return heads or self._head_by_rows()

    def adapter_reason(self, path: str) -> str | None:
        """An adapter of peft is a hidden matrix where the module that it adapts is one."""
        base = _ADAPTER.sub("", path)
        if base == path:
            return None
        for head in (base, f"{base}.base_layer"):
            if head in self.head_reasons:
                return "adapter of an output head"
        adapted = getattr(self.modules.get(base), "base_layer", None)
        while hasattr(adapted, "base_layer"):
            adapted = adapted.base_layer
        hidden = isinstance(adapted, (nn.Linear, _ConvNd)) or (adapted is not None and is_conv1d(adapted))
        return None if hidden else f"adapter of {type(adapted).__name__}"

    def _head_by_rows(self) -> dict[str, str]:
        """The last Linear with as many rows as the input embedding: hidden layers of that width come before it. Where the
        model does not name that embedding, only its very last Linear, against any embedding."""
        inputs = self._ask("get_input_embeddings")
        tables = {p: m for p, m in self.modules.items() if isinstance(m, nn.Embedding)}
        named = {p: m for p, m in tables.items() if any(m.weight is w for w in inputs)}
        by_rows = {true_shape(m.weight)[0]: path for path, m in reversed((named or tables).items())}
        linears = [(p, m) for p, m in reversed(self.modules.items()) if isinstance(m, nn.Linear)]
        for path, module in linears if named else linears[:1]:
            if true_shape(module.weight)[0] in by_rows:
                return {path: f"output head (as many rows as {by_rows[true_shape(module.weight)[0]]})"}
        return {}

    def _ask(self, method: str) -> list:
        """Weights of what `method` returns, asked of every module that has it: the model may be wrapped."""
        weights = []
        for module in self.modules.values():
            try:
                answer = getattr(module, method, lambda: None)()
            except Exception:  # foreign code; transformers raises NotImplementedError: "this model has none"
                continue
            for part in answer if isinstance(answer, nn.ModuleList) else [answer]:
                weights.append(getattr(part, "weight", None))
        return [w for w in weights if w is not None]


def _is_named_as_head(path: str, names: tuple[str, ...]) -> bool:
    """Whether the last name part says so. Nothing inside a numbered layer is an output head."""
    parts = _unwrapped(path).split(".")
    if any(part.isdigit() for part in parts):
        return False
    below_classifier = parts[-1] == "out_proj" and any(part in _CLASSIFIERS for part in parts)
    return below_classifier or parts[-1] in names and (parts[-1] != "fc" or len(parts) == 1)


def _unwrapped(path: str) -> str:
    """The path of a module, seen through the wrappers of peft."""
    return re.sub(r"\.(base_layer|original_module|modules_to_save\.[^.]+)$", "", path).removeprefix("base_model.model.")
