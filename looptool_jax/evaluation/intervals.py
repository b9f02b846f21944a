"""Intervals of accuracies."""

from __future__ import annotations

import math


def wilson(share: float, items: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `items` (Wilson, 1927): inside [0, 1], and of use for few items and for
    shares near 0 and 1."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    middle, scale = share + z * z / (2 * items), 1 + z * z / items
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
