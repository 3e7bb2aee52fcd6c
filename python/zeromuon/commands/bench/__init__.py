"""`zeromuon bench`: measurements of this package beside its peers, each in one process."""
