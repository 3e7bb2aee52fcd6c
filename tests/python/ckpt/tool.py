"""The functions under test, by the names of the verbs."""

from zeromuon._ckpt import (  # noqa: F401
    FormatError,
    convert_optimizer,
    diff,
    export_weights as export,
    inspect,
    reshard,
    universal,
    verify,
)
