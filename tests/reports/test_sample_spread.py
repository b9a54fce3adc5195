"""The section on the spread of samples of many classes."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.evaluation.spread import case_spread
from unisegdiff_pipeline.reports import sample_spread


def test_curves_are_of_the_classes_that_have_a_colour_and_the_table_of_all() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3] = True
    names = [f"c{i}" for i in range(9)]
    classes = {name: [case_spread("a", name, [mask, mask], [mask], 1.0)] for name in names}
    section = sample_spread.section(classes)
    assert section is not None
    curves, _, table = section.body
    assert curves.count(">c7</text>") == 2
    assert ">c8</text>" not in curves
    assert ">c8</td>" in table
    assert section.intro.endswith("Figures show the first 8 of 9 classes.")
