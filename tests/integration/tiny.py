"""What the documents' scripts find in their folder: ./model, a Llama of 2 layers of width 32, and ./data.txt."""

from __future__ import annotations

import random
from pathlib import Path

LETTERS = 256
WORDS = "the shard matrix owner gathers momentum and every rank sends one slice back to it".split()


def make(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = _tokenizer().save_pretrained(folder / "model") and LETTERS + 2
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=LETTERS,
            eos_token_id=LETTERS,
            pad_token_id=LETTERS + 1,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder / "model")
    draw = random.Random(7)
    lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(100)]
    (folder / "data.txt").write_text("\n".join(lines) + "\n")


def _tokenizer():
    """Bytes as tokens, an end of text and a padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(["<end>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>", pad_token="<pad>")
