"""Along which axes images may be mirrored: not where two classes lie in the same order in nearly all cases.

The head of an organ and its tail can look alike, and then their place is what tells them apart. Mirrored along the axis
on which they lie in order, one is presented as the other. nnU-Net mirrors every axis of every data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from unisegdiff_pipeline.fingerprint import ClassOrder

ALL_AXES = (0, 1, 2)
MIN_CASES = 10  # with both classes; fewer say nothing of an order
ORDERED_SHARE = 0.95  # of the cases; by chance 10 of 10 have the same order once in 500 times


def plan_mirror_axes(orders: Sequence[ClassOrder], axis_order: Sequence[int] = ALL_AXES) -> tuple[tuple[int, ...], str]:
    """Axes of (Z, Y, X), after `axis_order`, that images may be mirrored along, and the reason."""
    ordered: dict[int, str] = {}
    for order in orders:
        if order.num_cases < MIN_CASES:
            continue
        for axis, stored in enumerate(axis_order):
            if order.same_share[stored] >= ORDERED_SHARE:
                reason = f"{order.first} and {order.second} lie in the same order in {order.same_share[stored]:.0%}"
                ordered.setdefault(axis, f"{'ZYX'[axis]}, on which {reason} of the cases")
    if not ordered:
        return ALL_AXES, "all axes, as in nnU-Net: no two classes lie in the same order along any"
    allowed = tuple(axis for axis in ALL_AXES if axis not in ordered)
    return allowed, "all axes but " + "; ".join(ordered[axis] for axis in sorted(ordered))
