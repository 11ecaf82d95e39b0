"""The angle between two matrices from their inner product and energies."""

from __future__ import annotations

import math


def angle(inner: float, energy_x: float, energy_y: float) -> float:
    """Returns arccos(⟨A, B⟩ / (‖A‖ ‖B‖)) in radians, in [0, π], from ⟨A, B⟩, ‖A‖² and ‖B‖².

    Two zero matrices are the same (0); a zero one and any other have nothing in common (π/2).
    """
    if energy_x <= 0 or energy_y <= 0:
        return 0.0 if energy_x <= 0 and energy_y <= 0 else math.pi / 2
    return math.acos(min(1.0, max(-1.0, inner / (math.sqrt(energy_x) * math.sqrt(energy_y)))))
