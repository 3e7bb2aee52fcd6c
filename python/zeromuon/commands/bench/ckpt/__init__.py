"""`zeromuon bench ckpt`: the checkpoint tool beside DeepSpeed's scripts."""
