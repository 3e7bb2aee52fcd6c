"""`zeromuon compare`: DeepSpeed's own Muon and this one, side by side, defect by defect."""
