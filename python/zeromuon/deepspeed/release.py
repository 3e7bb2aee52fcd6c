"""Which release of DeepSpeed is installed, and the error for one that is not as expected."""

from __future__ import annotations

SUPPORTED = "0.18.0 to 0.19.8"  # see docs/integration.md


def deepspeed_version() -> str:
    import deepspeed

    return deepspeed.__version__


def other_release(found: str) -> ValueError:
    """The error for a DeepSpeed in which something is not what zeromuon relies on. found: a clause that says what."""
    return ValueError(f"DeepSpeed {deepspeed_version()}: {found}; use a supported release ({SUPPORTED})")
