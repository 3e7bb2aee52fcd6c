"""Going on through engine.load_checkpoint from a checkpoint that was resharded to other numbers of ranks and back."""

import pytest

from tests.multirank.launch import row


MUON_CLIP = {"per_head": "mla", "qk_clip": True, "qk_clip_threshold": 0.2}


def on(world_size, optimizer, **arguments):
    id = " ".join(["reshard", optimizer, *map(str, arguments.values())])
    one = row(id, "reshard_and_go_on", optimizer=optimizer, **arguments)
    return pytest.param(world_size, one, id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize(
    "world_size, row",
    [
        *(on(w, "ZeroMuon", offload=offload) for w in (1, 2, 3) for offload in (True, False)),
        *(on(w, "ZeroMuon", model="latent", options=MUON_CLIP) for w in (2, 3)),
        *(on(2, optimizer, dtype=dtype) for optimizer in ("ZeroMuon", "AdamW", "Muon") for dtype in ("fp32", "bf16")),
    ],
)
def test_training_after_reshard_there_and_back_continues_bit_for_bit(world_size, row, result):
    assert result["loaded"] == [True] * world_size, "right after loading"
    assert result["same"] == [True] * world_size, "after more steps"
    assert result["moved"] and result["steps"] == 5
