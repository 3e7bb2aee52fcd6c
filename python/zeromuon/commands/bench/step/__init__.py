"""`zeromuon bench step`: engine.step() of ZeRO-3, with ranks of its own."""
