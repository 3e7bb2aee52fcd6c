"""The largest logits: against all pairs written out, and as transformers' attention hands them over."""

import math

import pytest
import torch
import transformers
from torch import nn

from zeromuon import qk_clip
from zeromuon.qk_clip.logits import Pairs, largest_logits
from zeromuon.qk_clip.watch import LogitWatch, watch_transformers

SCALE = 0.3


def pairs_of(batch=2, heads=4, keys_heads=2, queries=5, keys=5, width=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries + keys)
    q = torch.randn(batch, heads, queries, width, generator=generator).to(dtype)
    return q, torch.randn(batch, keys_heads, keys, width, generator=generator).to(dtype)


def by_hand(q, k, sees) -> list[float]:
    """sees: (sequence, head, query, key) -> whether the pair counts."""
    shared = q.shape[1] // k.shape[1]
    return [
        max(
            SCALE * sum(a * b for a, b in zip(q[s, h, i].tolist(), k[s, h // shared, j].tolist()))
            for s in range(q.shape[0])
            for i in range(q.shape[2])
            for j in range(k.shape[2])
            if sees(s, h, i, j)
        )
        for h in range(q.shape[1])
    ]


TOKENS = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
ADDED = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min)
PACKED = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
MASKS = {
    "none": (dict(), lambda s, h, i, j: True),
    "causal": (dict(causal=True), lambda s, h, i, j: j <= i),
    "window": (dict(causal=True, window=2), lambda s, h, i, j: i - 2 < j <= i),
    "tokens": (dict(mask=TOKENS), lambda s, h, i, j: TOKENS[s, j] == 1),
    "tokens, causal": (dict(mask=TOKENS, causal=True), lambda s, h, i, j: TOKENS[s, j] == 1 and j <= i),
    "added": (dict(mask=ADDED), lambda s, h, i, j: j <= i),
    "added, infinite": (dict(mask=ADDED.masked_fill(ADDED < 0, -math.inf)), lambda s, h, i, j: j <= i),
    "a bias is no mask": (dict(mask=ADDED - 5.0), lambda s, h, i, j: j <= i),
    "bool": (dict(mask=ADDED == 0), lambda s, h, i, j: j <= i),
    "packed": (dict(causal=True, segments=PACKED), lambda s, h, i, j: PACKED[s, i] == PACKED[s, j] and j <= i),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_largest_logit_of_each_head_is_over_the_pairs_that_the_mask_lets_through(name):
    given, sees = MASKS[name]
    if name.startswith("tokens, causal"):
        given = {**given, "mask": (tokens := given["mask"].clone())}
        tokens[1, 0] = 1  # else no key is left for the first query
        sees = lambda s, h, i, j: tokens[s, j] == 1 and j <= i  # noqa: E731
    q, k = pairs_of()
    found = largest_logits(q, k, SCALE, Pairs(5, 5, **given))
    assert found.tolist() == pytest.approx(by_hand(q, k, sees), rel=1e-6)


def test_of_fewer_queries_than_keys_they_are_the_last():
    q, k = pairs_of(queries=2, keys=5)
    found = largest_logits(q, k, SCALE, Pairs(2, 5, causal=True))
    assert found.tolist() == pytest.approx(by_hand(q, k, lambda s, h, i, j: j <= i + 3), rel=1e-6)


def test_a_head_that_sees_nothing_and_an_empty_batch_have_no_largest():
    q, k = pairs_of()
    assert largest_logits(q, k, SCALE, Pairs(5, 5, torch.zeros(2, 5))).tolist() == [-math.inf] * 4
    assert largest_logits(q[:0], k[:0], SCALE, Pairs(5, 5)).tolist() == [-math.inf] * 4


def test_the_bound_is_above_and_of_the_largest_norms():
    q, k = pairs_of()
    bound = largest_logits(q, k, -SCALE, Pairs(5, 5), exact=False)
    assert (bound >= largest_logits(q, k, SCALE, Pairs(5, 5))).all()
    assert bound[3].item() == pytest.approx(
        SCALE * q[:, 3].norm(dim=-1).max().item() * k[:, 1].norm(dim=-1).max().item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_and_other_sequences_of_the_batch_leave_the_bits(dtype, monkeypatch):
    q, k = pairs_of(batch=3, queries=40, keys=40, width=16, dtype=dtype)
    whole = largest_logits(q, k, SCALE, Pairs(40, 40, causal=True))
    alone = torch.stack(
        [largest_logits(q[s : s + 1], k[s : s + 1], SCALE, Pairs(40, 40, causal=True)) for s in range(3)]
    )
    assert torch.equal(whole, alone.amax(0)) and whole.dtype == torch.float32
    monkeypatch.setattr("zeromuon.qk_clip.logits._ELEMENTS_AT_ONCE", 4 * 40 * 7)
    assert torch.allclose(largest_logits(q, k, SCALE, Pairs(40, 40, causal=True)), whole, rtol=1e-6)


# ---- models ----------------------------------------------------------------------------------------

SIZES = dict(
    vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20,
    initializer_range=0.5,
)  # fmt: skip
GPT2 = dict(vocab_size=40, n_embd=24, n_layer=2, n_head=4, initializer_range=0.5)


def _model(name: str, **config) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**config))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


MODELS = {
    "llama": lambda **more: _model("Llama", **SIZES, **more),
    "llama, window": lambda **more: _model("Mistral", **SIZES, sliding_window=3, **more),
    "gpt2": lambda **more: _model("GPT2", **GPT2, **more),
    "softcap": lambda **more: _model("Gemma2", **SIZES, head_dim=6, sliding_window=4, query_pre_attn_scalar=9, **more),
}
IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])


def watched(model: nn.Module) -> tuple[LogitWatch, list[nn.Module]]:
    attention = [m for m in model.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "config")]
    watch_transformers()
    return LogitWatch({m: 4 for m in attention}, torch.device("cpu"), exact=True), attention


def seen_by_eager(model, monkeypatch, **inputs) -> list[float]:
    """All layers' heads, from the model's own eager function, which gets masks that are added."""
    module = __import__(type(model).__module__, fromlist=["x"])
    inner, found = module.eager_attention_forward, []

    def spy(attention, query, key, value, mask, *rest, scaling=None, **more):
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        logits = query @ keys.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if mask is not None:
            logits = logits.masked_fill(mask[..., : keys.shape[2]] < -1e30, -math.inf)
        found.extend(logits.amax((0, 2, 3)).tolist())
        return inner(attention, query, key, value, mask, *rest, scaling=scaling, **more)

    with monkeypatch.context() as patched:
        patched.setattr(module, "eager_attention_forward", spy)
        model.set_attn_implementation("eager")
        model(**inputs)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_seen_whatever_its_attention_is_called_and_computes_the_same(name, padded, monkeypatch):
    inputs = {"input_ids": IDS, **({"attention_mask": PADDED} if padded else {})}
    plain = MODELS[name]().train()
    expected = seen_by_eager(plain, monkeypatch, **inputs)
    for implementation in ("eager", "sdpa"):
        if name == "softcap" and implementation == "sdpa":
            continue  # transformers refuses it
        plain.set_attn_implementation(implementation)
        before = plain(**inputs).logits
        watch, _ = watched(plain)
        assert torch.equal(plain(**inputs).logits, before)
        assert watch.largest.tolist() == pytest.approx(expected, rel=1e-5)


def test_what_is_seen_adds_up_in_training_until_a_reset_and_not_in_evaluation():
    model = MODELS["llama"]()
    watch, _ = watched(model)
    model.eval()(input_ids=IDS)
    assert watch.largest.isinf().all()
    with torch.no_grad():  # as in the first forward of reentrant checkpointing
        model.train()(input_ids=IDS[:1])
    first = watch.largest.clone()
    model(input_ids=IDS[1:])
    second = watch.largest.clone()
    watch.reset()
    model(input_ids=IDS[1:])
    assert torch.equal(second, torch.maximum(first, watch.largest)) and not torch.equal(first, second)


def test_two_models_are_seen_apart_and_one_without_a_watch_is_left_alone():
    first, second = MODELS["llama"]().train(), MODELS["llama"]().train()
    (one, _), (two, _) = watched(first), watched(second)
    first(input_ids=IDS)
    assert two.largest.isinf().all() and one.largest.isfinite().all()
    MODELS["llama"]().train()(input_ids=IDS)


def test_a_report_of_ones_own_attention_counts_like_those_of_transformers():
    own = nn.Module()
    watch = LogitWatch({own: 4}, torch.device("cpu"), exact=True)
    q, k = pairs_of()
    qk_clip.report(own, q, k, SCALE, causal=True)
    assert watch.largest.tolist() == pytest.approx(by_hand(q, k, lambda s, h, i, j: j <= i), rel=1e-6)
    qk_clip.report(own, 9 * q, k)
    assert watch.largest[0] > 9 * by_hand(q, k, lambda s, h, i, j: True)[0]
    with pytest.raises(ValueError, match="computes 2 heads, its projections have 4"):
        qk_clip.report(own, q[:, :2], k)
    qk_clip.report(nn.Linear(2, 2), q, k)


def test_unregister_gives_transformers_its_own_back():
    import zeromuon
    from transformers.modeling_utils import AttentionInterface

    zeromuon.unregister()
    own = AttentionInterface.get_interface
    watch_transformers()
    assert AttentionInterface.get_interface is not own
    zeromuon.unregister()
    assert AttentionInterface.get_interface is own


def test_packed_sequences_and_blocks_of_flex_attention_are_read():
    from torch.nn.attention.flex_attention import create_block_mask

    from zeromuon.qk_clip.watch import _pairs

    own, (q, k) = nn.Module(), pairs_of(batch=1)
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    for more in ({"position_ids": positions}, {"cu_seq_lens_k": torch.tensor([0, 2, 5], dtype=torch.int32)}):
        found = largest_logits(q, k, SCALE, _pairs("flash_attention_2", own, q, k, None, more))
        packed = by_hand(q, k, lambda s, h, i, j: (i < 2) == (j < 2) and j <= i)
        assert found.tolist() == pytest.approx(packed, rel=1e-6)
    blocks = create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < 3), 1, None, 5, 5, device="cpu")
    found = largest_logits(q, k, SCALE, _pairs("flex_attention", own, q, k, blocks, {}))
    assert found.tolist() == pytest.approx(by_hand(q, k, lambda s, h, i, j: i - 3 < j <= i), rel=1e-6)
