"""What the rules of who gets Muon need to know of a model as a whole: owners of parameters, heads, routers, adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .heads import value_of

# Names of output heads. The second kind is also in use for hidden layers: where the model names its head, it counts only
# near the top, or in what is called a head itself.
_HEAD_NAME = re.compile(
    r"(?!pre_)(.+_)?(head|classifier)|embed_out|score|critic|qa_outputs|seq_relationship|final_layer|decoder_pred"
    r"|logits_(proj|dense)|dense_prediction|feat_out|prob_out|predict_.+"
)
_MAYBE_HEAD_NAMES = ("head", "output", "classifier", "summary", "fc")
_IMAGE_OUTPUT = re.compile(r"conv_(out|post|final)")  # of a convolution to at most so many channels
_FEW_CHANNELS = 8
_CLASSIFIERS = ("classifier", "classification_head")  # their out_proj is a head
_ADAPTER = re.compile(r"\.lora_[A-Za-z_]+\.[^.]+$|\.lora_[A-Za-z_]+$")  # of peft, below the module it adapts
_STEM = re.compile(r"patch_?embed(?!ding_proj)|(^|_)stem(_|$)", re.IGNORECASE)
_INPUT = re.compile(_STEM.pattern + r"|patch_?proj|vision_?embed|value_?embed|input_?embed", re.IGNORECASE)
_POSITION_BIAS = re.compile(r"(rel(ative)?|continuous)_pos(ition)?[a-z_]*bias", re.IGNORECASE)
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
        self._stem = self._find_stem()
        self._labels = next((n for m in self.modules.values() if (n := _labels_of(m))), None)
        self.head_reasons = self._find_heads()

    @staticmethod
    def embedding_reason(owner: Owner) -> str | None:
        is_embedding = isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag))
        return "embedding" if is_embedding and owner.attribute == "weight" else None

    def input_reason(self, owner: Owner) -> str | None:
        """A Linear that takes what comes in, patches or values, behind the last number of its path."""
        parts = re.split(r"\.\d+\.", owner.path)[-1].split(".")
        named = isinstance(owner.module, nn.Linear) and any(map(_INPUT.search, parts))
        return "input projection" if named else None

    @staticmethod
    def position_bias_reason(owner: Owner) -> str | None:
        return "position bias" if _POSITION_BIAS.search(owner.name) else None

    def tied_reason(self, owners: list[Owner]) -> str | None:
        """Weights that an embedding or a head shares; hidden layers that are used twice are hidden layers."""
        if len(owners) == 1:
            return None
        shared = any(self.embedding_reason(owner) or owner.path in self.head_reasons for owner in owners)
        return f"tied with {owners[1].name}" if shared else None

    def router_reason(self, path: str, rows: int) -> str | None:
        """A router is called so, is of a class called so, or is a gate beside `experts` with an output for each, or one.

        rows: of the parameter."""
        parts = path.split(".") if path else []
        for depth, part in enumerate(parts):
            parent = self.modules.get(".".join(parts[:depth]))
            module = self.modules.get(".".join(parts[: depth + 1]))
            is_gate = part == "gate" or part.endswith("_gate")
            beside_experts = parent is not None and "experts" in parent._modules
            gates = is_gate and beside_experts and rows in (1, _experts_in(parent._modules["experts"]) or rows)
            if part.endswith("router") or gates or _ROUTER_CLASS.search(type(module).__name__):
                return "router"
        return None

    def convolution_reason(self, owner: Owner) -> str | None:
        module = owner.module
        if not isinstance(module, _ConvNd):
            return None
        if module.groups == module.in_channels and module.groups > 1:
            return "depthwise convolution"
        is_stem = owner.path == self._stem or any(map(_STEM.search, owner.path.split(".")))
        return "patch or stem convolution" if is_stem else None

    def _find_stem(self) -> str | None:
        """Path of the first convolution, where nothing hidden comes before it."""
        hidden = False
        for path, module in self.modules.items():
            if isinstance(module, _ConvNd):
                return path if not hidden or module.in_channels <= _FEW_CHANNELS else None
            hidden = hidden or isinstance(module, (nn.Linear, nn.Embedding))
        return None

    def _find_heads(self) -> dict[str, str]:
        """Path of each output head -> reason."""
        asked = self._ask("get_output_embeddings")
        heads = {}
        for path, module in self.modules.items():
            if not (isinstance(module, (nn.Linear, _ConvNd)) or is_conv1d(module)):
                continue
            if any(weight is getattr(module, "weight", None) for weight in asked):
                heads[path] = "output head (get_output_embeddings)"
            elif _is_named_as_head(path, module, not asked):
                heads[path] = f'output head (named "{_unwrapped(path).rpartition(".")[2]}")'
            elif self._has_a_row_for_each_label(path, module):
                heads[path] = f"output head (rows for {self._labels} labels)"
        return heads or self._head_by_rows()

    def _has_a_row_for_each_label(self, path: str, module: nn.Module) -> bool:
        """A Linear with as many rows as the config has labels, or one more for none of them, outside numbered layers."""
        if self._labels is None or not isinstance(module, nn.Linear) or re.search(r"\.\d+\.", f"{path}"):
            return False
        return true_shape(module.weight)[0] in (self._labels, self._labels + 1)

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


def _is_named_as_head(path: str, module: nn.Module, anywhere: bool) -> bool:
    """Whether the last name part says so. Nothing inside a numbered layer is an output head.

    anywhere: whether the names that hidden layers have, too, count in all places."""
    parts = _unwrapped(path).split(".")
    if any(part.isdigit() for part in parts) or "prenet" in parts:
        return False
    name, above = parts[-1], parts[:-1]
    if isinstance(module, _ConvNd) and _IMAGE_OUTPUT.fullmatch(name):
        return module.out_channels <= _FEW_CHANNELS
    if name == "fc":
        return above in ([], ["model"])
    if name in _MAYBE_HEAD_NAMES:
        return anywhere or len(above) <= 1 or above[-1].lower().endswith(("head", "classifier"))
    below_classifier = name == "out_proj" and any(part in _CLASSIFIERS for part in parts)
    return below_classifier or _HEAD_NAME.fullmatch(name) is not None


def _labels_of(module: nn.Module) -> int | None:
    labels = value_of(value_of(module, "config"), "num_labels")
    return labels if isinstance(labels, int) and labels > 1 else None


def _experts_in(experts: nn.Module) -> int | None:
    """How many there are: modules of their own, or matrices of a stack; None where neither says it."""
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    stacks = [shape for p in experts.parameters(recurse=False) if len(shape := true_shape(p)) == 3]
    return stacks[0][0] if stacks else None


def _unwrapped(path: str) -> str:
    """The path of a module, seen through the wrappers of peft."""
    return re.sub(r"\.(base_layer|original_module|modules_to_save\.[^.]+)$", "", path).removeprefix("base_model.model.")
