"""Which axes may be mirrored, on classes whose order is known."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.fingerprint import ClassOrder, class_orders
from unisegdiff_pipeline.planning.mirroring import chance_of_order
from unisegdiff_pipeline.planning.mirroring import plan_mirror_axes as plan

TWO = LabelScheme(("head", "tail"), ((1,), (2,)), "softmax", (1, 2))


def orders_of(num_in_order: int, num_turned: int = 0) -> tuple[ClassOrder, ...]:
    """Cases whose head lies before the tail along Y, or behind it; along Z and X either is as frequent."""
    rng = np.random.default_rng(0)
    centres = []
    for case in range(num_in_order + num_turned):
        head, side = rng.uniform(4, 8, 3), (-1) ** case
        tail = head + np.array([side, 6 if case < num_in_order else -6, -side])
        centres.append(np.stack([head, tail]))
    return class_orders(centres, TWO)


def test_shares_of_the_more_frequent_order() -> None:
    (order,) = orders_of(15, 5)
    assert order == ClassOrder("head", "tail", 20, (0.5, 0.75, 0.5))
    missing = np.array([[1.0, 2.0, 3.0], [np.nan] * 3])
    assert class_orders([missing], TWO) == ()


def test_regions_within_one_another_are_no_pair() -> None:
    regions = LabelScheme(("whole", "core", "other"), ((1, 2), (2,), (3,)), "regions", (1, 2, 3))
    orders = class_orders([np.arange(9.0).reshape(3, 3)], regions)
    assert [(order.first, order.second) for order in orders] == [("whole", "other"), ("core", "other")]


def test_an_axis_on_which_classes_are_in_order_is_left_out() -> None:
    axes, reason = plan(orders_of(20), (0, 1, 2))
    assert axes == (0, 2)
    assert reason == "all axes but Y, on which head and tail lie in the same order in 100% of the cases"
    # With the axes of a plan that puts Y first.
    assert plan(orders_of(20), (1, 0, 2))[0] == (1, 2)


def test_a_few_exceptions_are_an_order_still_and_many_are_none() -> None:
    assert plan(orders_of(38, 2), (0, 1, 2))[0] == (0, 2)
    assert plan(orders_of(36, 4), (0, 1, 2))[0] == (0, 1, 2)


def test_chance_by_hand() -> None:
    assert chance_of_order(3, 1.0) == 2 / 8
    assert chance_of_order(4, 0.75) == 2 * (4 + 1) / 16


def test_few_cases_or_one_class_say_nothing() -> None:
    assert plan(orders_of(6), (0, 1, 2))[0] == (0, 1, 2)  # three axes, each by chance once in 32 times
    assert plan(orders_of(8), (0, 1, 2))[0] == (0, 2)
    # The same eight cases say less where they are one pair of many that could have been in order by chance.
    many = orders_of(8) + (ClassOrder("a", "b", 8, (0.5, 0.5, 0.5)),) * 9
    assert plan(many, (0, 1, 2))[0] == (0, 1, 2)
    axes, reason = plan((), (0, 1, 2))
    assert axes == (0, 1, 2)
    assert reason.startswith("all axes, as in nnU-Net")
