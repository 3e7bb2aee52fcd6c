"""`zeromuon bench kernels` and `tune`: AdamW and Newton-Schulz on the CPU beside their peers and the roofs."""
