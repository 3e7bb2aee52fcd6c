"""The factors of a step, and what of a head's rows lies in the shard of a rank."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.python.qk_clip.test_heads import OPTIONS, SIZES, _model
from zeromuon import _core
from zeromuon.deepspeed.layout import Request
from zeromuon.qk_clip.clip import QkClip, _Place, _views
from zeromuon.selection.attention import HeadOutputs


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_parts_of_a_head_in_all_shards_are_the_head(world_size, transposed):
    rows, cols, (begin, length) = 7, 12, ((3, 2) if not transposed else (5, 3))
    whole = torch.arange(rows * cols, dtype=torch.float32).view(rows, cols)
    expected = whole.clone()
    (expected[:, begin : begin + length] if transposed else expected[begin : begin + length]).mul_(-1)
    found = []
    for rank in range(world_size):
        first, count = _core.zero3_range(rows * cols, world_size, rank)
        flat = torch.full((count + 9,), 1000.0)
        flat[4 : 4 + count] = whole.flatten()[first : first + count]
        outputs = HeadOutputs("q_proj", transposed, "q", (begin,), length)
        place = _Place(0, outputs, (first, first + count), 4, 0 if transposed else cols, cols if transposed else 0)
        for part in _views(place, begin, flat):
            part.mul_(-1)
        assert (flat[:4] == 1000).all() and (flat[4 + count :] == 1000).all()
        found.append(flat[4 : 4 + count])
    assert torch.equal(torch.cat(found), expected.flatten())


@pytest.fixture(scope="module")
def alone():
    """A process group of this process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def clip_of(**options) -> QkClip:
    return QkClip(_model("Llama", **SIZES), {**OPTIONS, **options})


def test_heads_that_share_keys_take_the_smallest_factor_and_heads_below_zero_none(alone):
    clip = clip_of()
    clip._watch.largest[:] = torch.tensor([200.0, 50.0, -1e6, 400.0, 100.0, 99.0, 0.0, float("-inf")])
    clip.begin(alone)
    assert clip._gammas == [[0.5, 0.25], [1.0, 1.0]]
    assert clip.seen == {"largest_logit": 400.0, "clipped_heads": 2, "heads": 8}
    assert clip._watch.largest.isinf().all(), "the next step begins anew"
    assert clip.collectives == 1


def test_without_a_report_a_step_says_what_to_call(alone):
    clip = clip_of()
    with pytest.raises(ValueError, match="no attention reported.*model.layers.0.self_attn.*zeromuon.qk_clip.report"):
        clip.begin(alone)


def test_a_layer_that_reports_nothing_is_named_once(alone):
    clip = clip_of()
    for _ in range(2):
        clip._watch.largest[:4] = 1.0
        if clip._warned:
            clip.begin(alone)
            continue
        with pytest.warns(
            UserWarning, match="model.layers.1.self_attn reported no queries and keys and is not clipped"
        ):
            clip.begin(alone)


def test_watching_alone_changes_nothing(alone):
    clip = clip_of(qk_clip=False, log_max_attention_logit=True)
    clip._watch.largest[:] = 1e3
    clip.begin(alone)
    assert clip.seen["clipped_heads"] == 0 and clip.seen["largest_logit"] == 1e3
    clip.apply([Request(SimpleNamespace(index=0, flat=None))])
