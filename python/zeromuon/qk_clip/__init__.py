"""QK-Clip, the other half of MuonClip (Kimi K2, arXiv 2507.20534): weights of queries and keys shrink where attention
logits grow.

For models whose attention transformers does not dispatch: :func:`report`.
"""

from .watch import report

__all__ = ["report"]
