"""Text to token chunks to batches, every choice drawn from (seed, step, rank).

Shapes: C chunks, B micro-batch, T tokens of a sequence with its special tokens, S tokens of text in a chunk (S <= T).
"""

from __future__ import annotations

import array
import codecs
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PARTS = 10  # one part in ten, the last, is held out
MASKED_FRACTION = 0.15
IGNORED_LABEL = -100
EVALUATION_SEED = 20240  # the held-out masks are the same in every run
SAMPLE_BYTES = 1 << 16
PASSAGE = 16  # tokens
MOST_TOKENS_COMPARED = 2_000_000
DEMO_DATA = "pydoc_data.topics"


def text_files(path: Path) -> list[Path]:
    """The files of `path` (a file, or a folder walked in sorted order without hidden names).

    Raises ValueError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = "a device, pipe or socket" if path.exists() else "nothing there"
        raise ValueError(f"--data {path}: expected a text file or a folder, found {found}; check the path")
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and "/." not in f"/{f.relative_to(path)}"]
    if not files:
        raise ValueError(f"--data {path}: expected text files in the folder, found none; put at least one there")
    return files


def check_text(path: Path) -> int:
    """Looks at the first 64 KiB of each file and returns the bytes of text in all.

    Raises ValueError for a path that is missing, empty, not readable or not UTF-8 text.
    """
    total_bytes = 0
    for file in text_files(path):
        try:
            with open(file, "rb") as handle:
                sample = handle.read(SAMPLE_BYTES)
        except OSError as error:
            raise ValueError(f"--data {file}: cannot be read ({error.strerror}); check its permissions") from error
        _decoded(file, sample, whole=len(sample) < SAMPLE_BYTES)
        total_bytes += file.stat().st_size
    if total_bytes == 0:
        raise ValueError(f"--data {path}: expected text, found 0 bytes; give a file with text in it")
    return total_bytes


def _decoded(file: Path, content: bytes, whole: bool) -> str:
    """whole: else the last character may be cut."""
    expected = f"--data {file}: expected UTF-8 text, found"
    if b"\0" in content:
        remedy = "it looks like a binary file: remove it from the folder or convert it to text"
        raise ValueError(f"{expected} a zero byte at offset {content.index(0)}; {remedy}")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, final=whole)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise ValueError(f"{expected} {found}; convert the file, for example with iconv -t UTF-8") from error


def read_text(source: str) -> str:
    """The whole text of `source`: a path, or the name of the demo's text. Files are joined by a newline."""
    if source == DEMO_DATA:
        return demo_text()
    return "\n".join(_decoded(file, file.read_bytes(), whole=True) for file in text_files(Path(source)))


def demo_text() -> str:
    """The English text of the Python language reference that every CPython ships, in sorted order of topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "the demo's text: this Python has no pydoc_data.topics (some packagers split it off); "
            "install the full Python, or give --data FILE"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


@dataclass(frozen=True)
class Corpus:
    """Tokens in text order; the last tenth is held out."""

    train: list[int]
    held_out: list[int]


def tokenize(tokenizer, text: str) -> Corpus:
    """Tokens of `text` without special tokens, split 9 : 1 by count."""
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cut = len(tokens) * (HELD_OUT_PARTS - 1) // HELD_OUT_PARTS
    return Corpus(train=tokens[:cut], held_out=tokens[cut:])


def tokens_sha256(corpus: Corpus) -> str:
    """Hex digest of all tokens in text order, as 64-bit numbers."""
    digest = hashlib.sha256()
    for tokens in (corpus.train, corpus.held_out):
        digest.update(array.array("q", tokens).tobytes())
    return digest.hexdigest()


def repeated_fraction(corpus: Corpus) -> float | None:
    """Share of the held-out tokens that stand in a passage of 16 tokens which occurs in the training text too.

    What is repeated measures memory, not understanding. None for a training text of more than 2 million tokens,
    where counting would take too much memory.
    """
    if len(corpus.train) > MOST_TOKENS_COMPARED or not corpus.held_out:
        return None
    seen = {tuple(corpus.train[i : i + PASSAGE]) for i in range(len(corpus.train) - PASSAGE + 1)}
    repeated, end = 0, 0  # tokens before `end` are counted
    for start in range(len(corpus.held_out) - PASSAGE + 1):
        if tuple(corpus.held_out[start : start + PASSAGE]) in seen:
            repeated += start + PASSAGE - max(start, end)
            end = start + PASSAGE
    return repeated / len(corpus.held_out)


@dataclass(frozen=True)
class Layout:
    """How a chunk of S tokens becomes a sequence of T: special tokens around it for masked LMs that have them."""

    seq_len: int
    vocab_size: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    mask_token: int | None = None  # None: causal

    @property
    def text_len(self) -> int:
        return self.seq_len - len(self.prefix) - len(self.suffix)


def layout_for(tokenizer, seq_len: int, vocab_size: int, masked: bool) -> Layout:
    """The layout of a task. Raises ValueError if a masked LM's tokenizer has no mask token or `seq_len` is too short."""
    if not masked:
        return Layout(seq_len, vocab_size)
    if tokenizer.mask_token_id is None:
        raise ValueError("tokenizer: expected a mask token (masked LM), found none; add one to tokenizer_config.json")
    prefix = () if tokenizer.cls_token_id is None else (tokenizer.cls_token_id,)
    suffix = () if tokenizer.sep_token_id is None else (tokenizer.sep_token_id,)
    layout = Layout(seq_len, vocab_size, prefix, suffix, tokenizer.mask_token_id)
    if layout.text_len < 4:
        raise ValueError(f"--seq-len {seq_len}: expected room for 4 tokens of text, found {layout.text_len}; raise it")
    return layout


def chunk(tokens: list[int], layout: Layout):
    """Contiguous sequences [C, T] int64; the incomplete rest at the end is left out."""
    import torch

    count = len(tokens) // layout.text_len
    text = torch.tensor(tokens[: count * layout.text_len], dtype=torch.int64).view(count, layout.text_len)
    prefix = torch.tensor(layout.prefix, dtype=torch.int64).expand(count, -1)
    suffix = torch.tensor(layout.suffix, dtype=torch.int64).expand(count, -1)
    return torch.cat([prefix, text, suffix], dim=1)


def generator(*key: int):
    """A torch generator whose stream is a function of the integers in `key` only."""
    import torch

    digest = hashlib.sha256(",".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def mask_tokens(sequences, layout: Layout, random, replace_all: bool):
    """Hides an equal number of text tokens in each sequence.

    sequences: [B, T] int64. replace_all: every chosen token becomes the mask token (held-out measure); else 80 % do,
    10 % become a random token and 10 % stay (BERT's training rule). Returns (input_ids, labels), both [B, T];
    labels are -100 where nothing was chosen.
    """
    import torch

    rows, count = sequences.shape[0], max(1, round(MASKED_FRACTION * layout.text_len))
    order = torch.rand(rows, layout.text_len, generator=random).argsort(dim=1)[:, :count] + len(layout.prefix)
    chosen = torch.zeros_like(sequences, dtype=torch.bool).scatter_(1, order, True)
    labels = torch.where(chosen, sequences, IGNORED_LABEL)
    kind = torch.rand(sequences.shape, generator=random)
    noise = torch.randint(layout.vocab_size, sequences.shape, generator=random)
    hidden = torch.where(kind < 0.8, layout.mask_token, torch.where(kind < 0.9, noise, sequences))
    return torch.where(chosen, layout.mask_token if replace_all else hidden, sequences), labels


def with_labels(sequences, layout: Layout, random, replace_all: bool = False):
    """(input_ids, labels) of either task; a causal model shifts the labels itself."""
    if layout.mask_token is None:
        return sequences, sequences.clone()
    return mask_tokens(sequences, layout, random, replace_all)


@dataclass
class TrainingBatches:
    """The batches of one rank. Thread: one.

    A micro-batch is a function of (seed, its index, rank): the order of chunks in an epoch is a permutation drawn from
    (seed, epoch), dealt to ranks in turn. `position` counts the sequences that all ranks have consumed: it is what a
    checkpoint carries.
    """

    chunks: object  # [C, T] int64
    layout: Layout
    seed: int
    rank: int
    world_size: int
    batch: int
    position: int = 0

    def next(self):
        """(input_ids, labels), both [B, T], of the next micro-batch of this rank."""
        import torch

        first = self.position + self.rank * self.batch
        rows = torch.stack([self.chunks[self._chunk_index(first + i)] for i in range(self.batch)])
        random = generator(self.seed, 1, self.position, self.rank)
        self.position += self.batch * self.world_size
        return with_labels(rows, self.layout, random)

    def _chunk_index(self, sample: int) -> int:
        epoch, index = divmod(sample, len(self.chunks))
        return int(_order(self.seed, epoch, len(self.chunks))[index])


@functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _order(seed: int, epoch: int, count: int):
    import torch

    return torch.randperm(count, generator=generator(seed, 0, epoch))


def with_held_out_labels(sequences, layout: Layout):
    """(input_ids, labels), both [C, T], of held-out sequences; the masks are the same in every run."""
    return with_labels(sequences, layout, generator(EVALUATION_SEED), replace_all=True)
