"""config.json and the tokenizer of a Hugging Face folder, beside exported weights. No torch."""

from __future__ import annotations

import filecmp
import os
import shlex
import shutil
from pathlib import Path

from ..base.durable import whole_file
from .arguments import PathLike, text_of

# Everything that from_pretrained() reads beside the weights.
_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
_OF_ONE_FILE = (".pt", ".bin", ".pth")


class ConfigFiles:
    """The files to copy, checked before any weight is written. source: a model folder. output: a folder."""

    def __init__(self, source: PathLike, output: PathLike, replace: bool):
        """Raises ValueError if there is no config.json, `output` is one file, or another file is in the way."""
        self._source, self._output = Path(text_of(source, "config_from")), Path(output)
        if not (self._source / "config.json").is_file():
            raise ValueError(
                f"config_from {self._source}: expected the folder of a Hugging Face model, got one without config.json;"
                " name the folder that the model was loaded from"
            )
        if self._output.suffix in _OF_ONE_FILE:
            raise ValueError(
                f"config_from: the output {self._output} is one file; name a folder, or leave config_from out"
            )
        self._names = [name for name in _NAMES if (self._source / name).is_file()]
        if not replace:
            self._require_free()

    def _require_free(self) -> None:
        for name in self._names:
            target = self._output / name
            if target.exists() and not filecmp.cmp(target, self._source / name, shallow=False):
                raise ValueError(
                    f"{target}: expected no file of this name, got one that differs from {self._source / name}; choose"
                    " another output, or say --force to replace it"
                )

    def copy(self) -> list[str]:
        """Copies them, each under a temporary name first. Returns the paths. Raises ValueError if one cannot be written."""
        return [self._copy(name, self._names[index:]) for index, name in enumerate(self._names)]

    def _copy(self, name: str, left: list[str]) -> str:
        target = self._output / name
        try:
            with whole_file(target) as part:
                shutil.copyfile(self._source / name, part)
                with open(part, "rb+") as copied:
                    os.fsync(copied.fileno())
        except OSError as error:
            rest = shlex.join(["cp", *(str(self._source / name) for name in left), str(self._output)])
            raise ValueError(
                f"{target}: expected to copy {self._source / name} there, got: {error.strerror}; the weights are written: "
                f"make room, then {rest}"
            ) from error
        return str(target)
