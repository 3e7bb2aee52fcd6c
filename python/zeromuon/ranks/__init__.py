"""Processes and the machine they run on: starting ranks, joining them, cores and free memory, leaving."""
