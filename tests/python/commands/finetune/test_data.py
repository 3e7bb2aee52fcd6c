"""Data order, masks and the split are functions of seed, step and rank; the baseline is the count of words."""

from __future__ import annotations

import math

import pytest
import torch

from zeromuon.commands.finetune import baseline, data

LAYOUT = data.Layout(seq_len=16, vocab_size=100, prefix=(1,), suffix=(2,), mask_token=3)
CHUNKS = data.chunk(list(range(10, 10 + 14 * 20)), LAYOUT)


def batches(rank=0, position=0, seed=7):
    return data.TrainingBatches(CHUNKS, LAYOUT, seed, rank, world_size=2, batch=3, position=position)


def test_chunks_are_contiguous_and_carry_the_special_tokens():
    assert CHUNKS.shape == (20, 16)
    assert CHUNKS[0].tolist() == [1, *range(10, 24), 2]
    assert CHUNKS[1, 1].item() == 24


def test_the_rest_that_fills_no_chunk_is_left_out():
    assert len(data.chunk(list(range(27)), LAYOUT)) == 1


def test_the_same_seed_step_and_rank_give_the_same_batch():
    first, again = batches(), batches()
    for _ in range(9):  # more than one epoch of 20 sequences
        for one, other in zip(first.next(), again.next()):
            assert torch.equal(one, other)


def test_going_on_from_a_position_gives_the_batches_that_were_left():
    whole = batches(rank=1)
    for _ in range(5):
        whole.next()
    rest = batches(rank=1, position=whole.position)
    for one, other in zip(whole.next(), rest.next()):
        assert torch.equal(one, other)


def test_ranks_and_seeds_draw_different_batches():
    ids = [batches(rank=rank, seed=seed).next()[0] for rank, seed in ((0, 7), (1, 7), (0, 8))]
    assert not torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])


def test_an_epoch_deals_every_chunk_once_over_the_ranks():
    layout = data.Layout(seq_len=16, vocab_size=100)  # causal: the batch shows the chunk itself
    ranks = [data.TrainingBatches(CHUNKS, layout, 0, rank, world_size=2, batch=5) for rank in (0, 1)]
    seen = sorted(row[1].item() for _ in range(2) for each in ranks for row in each.next()[0])
    assert seen == sorted(CHUNKS[:, 1].tolist())


def test_masks_hide_the_same_number_of_text_tokens_in_each_sequence():
    ids, labels = data.mask_tokens(CHUNKS, LAYOUT, data.generator(1), replace_all=True)
    chosen = labels != data.IGNORED_LABEL
    assert chosen.sum(1).tolist() == [2] * 20  # 15 % of 14
    assert not chosen[:, 0].any() and not chosen[:, -1].any()
    assert torch.equal(labels[chosen], CHUNKS[chosen])
    assert (ids[chosen] == 3).all() and torch.equal(ids[~chosen], CHUNKS[~chosen])


def test_training_masks_follow_the_80_10_10_rule():
    many = CHUNKS.repeat(200, 1)
    ids, labels = data.mask_tokens(many, LAYOUT, data.generator(2), replace_all=False)
    chosen = labels != data.IGNORED_LABEL
    masked, kept = (ids[chosen] == 3).float().mean().item(), (ids[chosen] == labels[chosen]).float().mean().item()
    assert abs(masked - 0.8) < 0.02 and abs(kept - 0.1) < 0.02


def test_the_last_tenth_is_held_out():
    class Characters:
        def __call__(self, text, **_):
            return {"input_ids": [ord(c) for c in text]}

    corpus = data.tokenize(Characters(), "a" * 90 + "b" * 10)
    assert (len(corpus.train), len(corpus.held_out)) == (90, 10)
    assert set(corpus.held_out) == {ord("b")}


def test_held_out_tokens_in_passages_that_training_has_are_counted_once():
    train = list(range(100))
    assert data.repeated_fraction(data.Corpus(train, list(range(200, 240)))) == 0
    assert data.repeated_fraction(data.Corpus(train, list(range(5, 25)) + list(range(200, 220)))) == 0.5
    assert data.repeated_fraction(data.Corpus(train, list(range(15)) + [200])) == 0  # one token short of a passage


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    for name, content in (("b.txt", "second"), ("a.txt", "first"), (".secret", "no")):
        (tmp_path / name).write_text(content)
    assert data.read_text(str(tmp_path)) == "first\nsecond"


def test_a_character_cut_at_the_end_of_the_sample_is_text(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"a" * (data.SAMPLE_BYTES - 1) + "é".encode() * 4)
    assert data.check_text(tmp_path / "t.txt") == data.SAMPLE_BYTES + 7


def test_a_masked_model_without_a_mask_token_is_refused():
    class Tokenizer:
        mask_token_id = None

    with pytest.raises(ValueError, match="mask token"):
        data.layout_for(Tokenizer(), 16, 100, masked=True)


def test_the_baseline_is_the_add_one_smoothed_word_count():
    # train: 0 three times, 1 once, of 4 words: p(0) = 4/8, p(1) = 2/8, p(2) = 1/8
    got = baseline.unigram_cross_entropy([0, 0, 1, 0], [0, 1, 2, 2], vocab_size=4)
    assert got == pytest.approx(-(math.log(4 / 8) + math.log(2 / 8) + 2 * math.log(1 / 8)) / 4)


def test_a_demo_text_on_record_with_another_figure_is_refused():
    digest = next(iter(baseline.KNOWN_DEMO_TEXTS))
    figure = baseline.KNOWN_DEMO_TEXTS[digest][1]
    assert "pinned" in baseline.describe_demo_text(digest, "3.11.2", False, figure)
    with pytest.raises(ValueError, match="expected 4.995"):
        baseline.describe_demo_text(digest, "3.11.2", False, figure + 0.01)


def test_an_unknown_demo_text_is_accepted_and_said():
    sentence = baseline.describe_demo_text("0" * 64, "3.99.0", False, 5.1)
    assert "not on record" in sentence and "computed, not compared" in sentence


def test_this_pythons_demo_text_is_english_of_the_expected_size():
    text = data.demo_text()
    assert 300_000 < len(text) < 1_000_000
    assert "assignment" in text.lower()
