"""Along which axes images may be mirrored: not where two classes lie in the same order in nearly all cases.

The head of an organ and its tail can look alike, and then their place is what tells them apart. Mirrored along the axis
on which they lie in order, one is presented as the other. nnU-Net mirrors every axis of every data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from unisegdiff_pipeline.fingerprint import ClassOrder

ALL_AXES = (0, 1, 2)
ORDERED_FRACTION = 0.95  # of the cases that hold both classes
CHANCE = 0.05  # at most, that classes in no order at all look like it along any axis (Bonferroni)


def plan_mirror_axes(orders: Sequence[ClassOrder], axis_order: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Axes of (Z, Y, X), after `axis_order`, that images may be mirrored along, and the reason."""
    ordered: dict[int, str] = {}
    for order in orders:
        for axis, stored in enumerate(axis_order):
            fraction = order.same_fraction[stored]
            if fraction >= ORDERED_FRACTION and chance_of_order(order.num_cases, fraction) * 3 * len(orders) <= CHANCE:
                reason = f"{order.first} and {order.second} lie in the same order in {fraction:.0%} of the cases"
                ordered.setdefault(axis, f"{'ZYX'[axis]}, on which {reason}")
    if not ordered:
        return ALL_AXES, "all axes, as in nnU-Net: no two classes lie in the same order along any"
    allowed = tuple(axis for axis in ALL_AXES if axis not in ordered)
    return allowed, "all axes but " + "; ".join(ordered[axis] for axis in sorted(ordered))


def chance_of_order(num_cases: int, fraction: float) -> float:
    """Probability that either order is seen in at least this fraction of the cases where both are equally likely."""
    least = round(fraction * num_cases)
    return 2 * sum(math.comb(num_cases, count) for count in range(least, num_cases + 1)) / 2**num_cases
