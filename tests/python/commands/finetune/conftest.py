"""A tiny model and a text, made here, and a way to run the command."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import processes

WORDS = "the a shard rank matrix owner moves adds waits sums between after before step update of and to in".split()
# glibc keeps what is freed for the next step; else the kernel has to clear fresh pages in each.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """About 60 KB of words in an order with some structure."""
    draw = random.Random(5)
    words = [draw.choice(WORDS[:6] if i % 3 else WORDS) for i in range(12000)]
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(" ".join(words))
    return file


@pytest.fixture(scope="session")
def masked_model(tmp_path_factory) -> Path:
    """An encoder without a head: 2 layers of width 32, so that the masked-LM head starts at random."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = len(_tokenizer_into(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal_model(tmp_path_factory) -> Path:
    """A GPT-2 of 2 layers of width 32: its weights are stored transposed (Conv1D)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = len(_tokenizer_into(folder))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _tokenizer_into(folder: Path) -> dict:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return vocabulary


class Command:
    """`python -m zeromuon finetune` as a process of its own, one thread per rank so that bits repeat."""

    unfinished: list[Command] = []

    def __init__(self, *arguments: str, **streams):
        self._ends = contextlib.ExitStack()
        command = [sys.executable, "-m", "zeromuon", "finetune", *map(str, arguments)]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **streams}
        running = processes.running(command, env={**os.environ, "OMP_NUM_THREADS": "1", **KEPT_MEMORY}, **given)
        self.process = self._ends.enter_context(running)
        self.unfinished.append(self)

    def finish(self) -> tuple[int, str]:
        """(exit status, output)"""
        output, _ = self.process.communicate(timeout=570)
        return self.process.returncode, output

    def end(self) -> None:
        """With all that it started."""
        self._ends.close()

    def interrupt_after(self, folder: Path, step: int, hold_the_ranks: bool = False) -> None:
        """Sends SIGINT once the metrics contain `step`. hold_the_ranks: they are stopped first, so that none can finish its
        step and save, and a second SIGINT follows once the first was understood."""
        self.wait_for_step(folder, step)
        if hold_the_ranks:
            self.hold_the_ranks()
        self.process.send_signal(signal.SIGINT)
        if hold_the_ranks:
            self.wait_for((folder / "stop").exists)
            self.process.send_signal(signal.SIGINT)

    def hold_the_ranks(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
                process.suspend()

    def wait_for_step(self, folder: Path, step: int, value: str = "loss", since: float = 0.0) -> None:
        """Until the metrics contain the step with this value, and were written after a time: a resume drops what came later
        than its checkpoint."""
        metrics = folder / "metrics.jsonl"

        def is_there() -> bool:
            written = metrics.exists() and metrics.stat().st_mtime >= since
            return written and f'"step": {step}, "{value}"' in metrics.read_text()

        self.wait_for(is_there)

    def wait_for(self, condition) -> None:
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            time.sleep(0.02)


@pytest.fixture(scope="session")
def command():
    """Command, to be called with the options of `zeromuon finetune`."""
    return Command


@pytest.fixture(autouse=True)
def no_command_outlives_its_test():
    yield
    while Command.unfinished:
        Command.unfinished.pop().end()


class Disk:
    """An ext4 of its own in the file `image`, mounted at `folder`."""

    def __init__(self, image: Path, folder: Path):
        self.image, self.folder = image, folder
        folder.mkdir()
        _run("mount", "-o", "loop", image, folder)

    def copy_of_what_is_written(self, target: Path) -> None:
        """The bytes that have reached the disk, as a power cut would leave them; what only the kernel's memory has is absent.

        Copied until two copies in a row are the same.
        """
        again = target.with_suffix(".again")
        _copy(self.image, again)
        for _ in range(50):
            _copy(self.image, target)
            if filecmp.cmp(again, target, shallow=False):
                break
            target.rename(again)
        again.unlink(missing_ok=True)
        assert target.exists(), "the disk does not rest"

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=False)


def _run(*words) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def _copy(source: Path, target: Path) -> None:
    _run("cp", "--sparse=always", source, target)


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MiB; skipped where this process may not mount."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    try:
        _run("mkfs.ext4", "-q", "-m", "0", image)
        made = Disk(image, tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system")
    yield made
    made.unmount()


@pytest.fixture(scope="session")
def undisturbed(command, masked_model, text_file, tmp_path_factory) -> Path:
    from tests.python.commands.finetune import short_runs

    out = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = command(*short_runs.options(masked_model, text_file, out)).finish()
    assert status == 0, output
    return out
