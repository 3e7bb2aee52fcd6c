"""The models whose step is played: shapes of their parameters, and the sub-groups that ZeRO-3 makes of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """cols: 0 for a vector, which weight decay leaves alone."""

    name: str
    rows: int
    cols: int = 0

    @property
    def numel(self) -> int:
        return self.rows * max(self.cols, 1)


@dataclass(frozen=True)
class Model:
    """muon: hidden matrices; adamw: all else; both in model order."""

    key: str
    title: str
    muon: tuple[Parameter, ...]
    adamw: tuple[Parameter, ...]

    @property
    def muon_numel(self) -> int:
        return sum(p.numel for p in self.muon)

    @property
    def numel(self) -> int:
        return self.muon_numel + sum(p.numel for p in self.adamw)


@dataclass(frozen=True)
class Decoder:
    """A decoder with grouped queries and a gated MLP. hidden, keys, mlp: widths, keys of all key-value heads together.
    biases: of the query, key and value. tied: the head is the embedding."""

    hidden: int
    keys: int
    mlp: int
    vocabulary: int
    layers: int
    biases: bool = False
    tied: bool = False

    def matrices(self, layer: int) -> list[Parameter]:
        h, kv, m = self.hidden, self.keys, self.mlp
        attention = {"attn.q": (h, h), "attn.k": (kv, h), "attn.v": (kv, h), "attn.o": (h, h)}
        shapes = attention | {"mlp.gate": (m, h), "mlp.up": (m, h), "mlp.down": (h, m)}
        return [Parameter(f"layers.{layer}.{name}", *shape) for name, shape in shapes.items()]

    def vectors(self, layer: int) -> list[Parameter]:
        sizes = {"q": self.hidden, "k": self.keys, "v": self.keys} if self.biases else {}
        biases = [Parameter(f"layers.{layer}.attn.{name}.bias", size) for name, size in sizes.items()]
        return [*biases, *(Parameter(f"layers.{layer}.norm{i}", self.hidden) for i in (1, 2))]

    def model(self, key: str, title: str) -> Model:
        layers = range(self.layers)
        embedding, norm = Parameter("embed", self.vocabulary, self.hidden), Parameter("norm", self.hidden)
        head = [] if self.tied else [Parameter("lm_head", self.vocabulary, self.hidden)]
        adamw = [embedding, *(v for i in layers for v in self.vectors(i)), norm, *head]
        return Model(key, title, tuple(m for i in layers for m in self.matrices(i)), tuple(adamw))


MODELS = {
    model.key: model
    for model in (
        Decoder(2048, 256, 11008, 151936, 36, biases=True, tied=True).model("qwen2.5-3b", "Qwen2.5-3B"),
        Decoder(4096, 1024, 14336, 128256, 32).model("llama-3-8b", "Llama-3-8B"),
    )
}
