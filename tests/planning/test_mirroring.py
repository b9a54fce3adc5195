"""Which axes may be mirrored, on classes whose order is known."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.fingerprint import ClassOrder, class_orders
from unisegdiff_pipeline.planning.mirroring import plan_mirror_axes


def orders_of(num_in_order: int, num_turned: int = 0) -> tuple[ClassOrder, ...]:
    """Cases whose head lies before the tail along Y, or behind it; along Z and X either is as frequent."""
    rng = np.random.default_rng(0)
    centres = []
    for case in range(num_in_order + num_turned):
        head, side = rng.uniform(4, 8, 3), (-1) ** case
        tail = head + np.array([side, 6 if case < num_in_order else -6, -side])
        centres.append(np.stack([head, tail]))
    return class_orders(centres, ("head", "tail"))


def test_shares_of_the_more_frequent_order() -> None:
    (order,) = orders_of(15, 5)
    assert order == ClassOrder("head", "tail", 20, (0.5, 0.75, 0.5))
    missing = np.array([[1.0, 2.0, 3.0], [np.nan] * 3])
    assert class_orders([missing], ("head", "tail")) == ()


def test_an_axis_on_which_classes_are_in_order_is_left_out() -> None:
    axes, reason = plan_mirror_axes(orders_of(20))
    assert axes == (0, 2)
    assert reason == "all axes but Y, on which head and tail lie in the same order in 100% of the cases"
    # With the axes of a plan that puts Y first.
    assert plan_mirror_axes(orders_of(20), (1, 0, 2))[0] == (1, 2)


def test_a_few_exceptions_are_an_order_still_and_many_are_none() -> None:
    assert plan_mirror_axes(orders_of(38, 2))[0] == (0, 2)
    assert plan_mirror_axes(orders_of(36, 4))[0] == (0, 1, 2)


def test_few_cases_or_one_class_say_nothing() -> None:
    assert plan_mirror_axes(orders_of(8))[0] == (0, 1, 2)
    axes, reason = plan_mirror_axes(())
    assert axes == (0, 1, 2)
    assert reason.startswith("all axes, as in nnU-Net")
