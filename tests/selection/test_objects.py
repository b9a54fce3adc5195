"""Numbers of annotated objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.components import sample_components
from unisegdiff_pipeline.selection.objects import numbers_of_objects

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))


def test_lesions_of_every_class_are_counted_in_the_cases_that_hold_any() -> None:
    labels = {
        "two": np.array([[1, 0, 1, 1, 0]]),
        "none": np.zeros((1, 5)),
        "one": np.array([[1, 1, 0, 0, 0]]),
        "held out": np.array([[1, 0, 1, 0, 1]]),
    }
    # of several annotators the labels count
    rows = {name: np.stack([row[None], np.ones_like(row)[None]]).astype(np.uint8) for name, row in labels.items()}
    stored = {name: SimpleNamespace(components=sample_components(row, BINARY, name)) for name, row in rows.items()}
    held_out: Any = SimpleNamespace(
        labels=BINARY, train_cases=("two", "none", "one"), data=SimpleNamespace(open=stored.__getitem__)
    )
    assert numbers_of_objects(held_out) == {"lesion": [2, 1]}
