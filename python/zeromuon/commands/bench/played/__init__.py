"""`zeromuon bench pipeline`: a step of large models on a virtual clock."""
