"""Which parameter gets which role, and why."""
