"""What came of a played step, as plain data. No torch.

Legend: W the world size; a lane is a resource of a rank: cpu (its DRAM), to_device and to_host (its link), compute (its
GPU) and collective (its way to the other ranks).
"""

from __future__ import annotations

from dataclasses import dataclass

COEFFICIENTS = "jordan"
WIRE_DTYPE, WIRE_BYTES = "bfloat16", 2
RATIO_LIMIT, WIRE_LIMIT, BALANCE = 1.10, 1.01, 0.20
NEWTON_SCHULZ = "newton_schulz"


@dataclass(frozen=True)
class Played:
    """What came of a scenario, in seconds and bytes.

    resources: lane -> the work of the rank that has most for it, without any latency. busiest: lane and rank of the largest.
    owner_s: Newton-Schulz of the most loaded owner. serial_s: sub-groups one by one, one slot. wire_mean, wire_most: bytes
    that a rank sends to others per Muon parameter. device_bytes, pinned_bytes: of the rank that needs most.
    """

    key: str
    balanced: bool
    makespan_s: float
    resources: dict[str, float]
    busiest: str
    owner_s: float
    serial_s: float
    wire_mean: float
    wire_most: float
    wire_floor: float
    device_bytes: int
    pinned_bytes: int

    @property
    def bound_s(self) -> float:
        """No schedule is shorter: the busiest resource does nothing but its work."""
        return max(self.resources.values())

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.bound_s

    @property
    def hidden(self) -> float:
        """Of the serial schedule."""
        return 1 - self.makespan_s / self.serial_s

    @property
    def met(self) -> bool:
        return self.ratio <= RATIO_LIMIT

    @property
    def wire_ratio(self) -> float:
        return self.wire_mean / self.wire_floor

    @property
    def wire_met(self) -> bool:
        return self.wire_ratio <= WIRE_LIMIT

    @property
    def two_largest(self) -> list[tuple[str, float]]:
        return sorted(self.resources.items(), key=lambda item: -item[1])[:2]

    @property
    def apart(self) -> float:
        """How much less the second largest resource time is than the largest."""
        (_, first), (_, second) = self.two_largest
        return 1 - second / first
