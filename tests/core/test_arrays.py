"""Arrays that hide values are refused wherever a user may hand one over; those that hide none are taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import unisegdiff_pipeline as usd
from unisegdiff_pipeline.core.arrays import plain_array
from unisegdiff_pipeline.io.image_objects import volume_of

MASK = np.array([[[0, 1, 1], [0, 0, 1]]])
HIDDEN = np.ma.masked_equal(MASK, 1)
TAKERS: dict[str, Callable[[np.ndarray], object]] = {
    "image": lambda array: volume_of(array[None], (1, 1, 1)),
    "channels": lambda array: volume_of([array, array], (1, 1, 1)),
    "metrics": lambda array: usd.metrics.dice(MASK, array),
    "evaluate": lambda array: usd.evaluate(array, MASK),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_hidden_values_are_refused(taker: str) -> None:
    with pytest.raises(ValueError, match=r"is a masked array with 3 hidden values; .* array\.filled\(VALUE\)"):
        TAKERS[taker](HIDDEN)
    TAKERS[taker](np.ma.masked_array(MASK))


def test_a_sequence_becomes_an_array() -> None:
    np.testing.assert_array_equal(plain_array(MASK.tolist(), "reference"), MASK)
    assert not isinstance(plain_array(np.ma.masked_array(MASK), "reference"), np.ma.MaskedArray)
