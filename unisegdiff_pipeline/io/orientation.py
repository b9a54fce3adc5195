"""Which way the axes of an image point, and bringing images that are stored in different ways into one orientation.

Codes name where the axes x, y, z of a file point, as nibabel's do: "LPS" runs to the patient's left, back (posterior)
and head (superior), "RAS" to the right, front (anterior) and head. Directions are as in `Geometry`: 3 x 3 cosines, row
major, a column for each axis x, y, z, in LPS coordinates. Arrays are (..., Z, Y, X).

Only permutations and flips of axes are used, which are views and lose nothing; an oblique image stays oblique.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.bounds import Cosine
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry

Direction = tuple[Cosine, Cosine, Cosine, Cosine, Cosine, Cosine, Cosine, Cosine, Cosine]

_LETTERS = ("LR", "PA", "SI")  # of the coordinates x, y, z (LPS): the way they grow, and the other way
_ALIGNED_COSINE = float(np.cos(np.radians(20)))  # axes nearer than this to the patient's count as the patient's


@dataclass(frozen=True)
class Reorientation:
    """A permutation of the axes (Z, Y, X), after which some of them are reversed.

    Attributes:
        axis_order: for each new axis, the one that it was before.
        flipped: for each new axis, whether it runs the other way.
    """

    axis_order: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """View of (..., Z, Y, X) in the new axes."""
        leading = array.ndim - 3
        turned = array.transpose(*range(leading), *(leading + axis for axis in self.axis_order))
        return turned[(..., *self._steps())]

    def undo(self, array: np.ndarray) -> np.ndarray:
        """View of an array in the new axes as it was before; the inverse of `apply`."""
        leading = array.ndim - 3
        former = (leading + self.axis_order.index(axis) for axis in range(3))
        return array[(..., *self._steps())].transpose(*range(leading), *former)

    def direction(self, direction: Sequence[float]) -> np.ndarray:
        """Directions (3, 3) of the new axes x, y, z of an image that had these."""
        signs = np.where(self.flipped, -1.0, 1.0)
        return _matrix(direction)[:, [2 - axis for axis in self.axis_order[::-1]]] * signs[::-1]

    def then(self, axis_order: Sequence[int]) -> Reorientation:
        """This one followed by another permutation."""
        z, y, x = axis_order
        order, flipped = self.axis_order, self.flipped
        return Reorientation((order[z], order[y], order[x]), (flipped[z], flipped[y], flipped[x]))

    def _steps(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(None, None, -1 if reverse else 1) for reverse in self.flipped)
        return z, y, x


def axis_codes(direction: Sequence[float]) -> str:
    """Three letters that say where the axes x, y, z point; of an oblique image what is nearest to each of them."""
    cosines = _matrix(direction)
    found = nearest_reorientation(direction, IDENTITY_DIRECTION)
    patient_axis = {2 - stored: 2 - axis for axis, stored in enumerate(found.axis_order)}  # of each of x, y, z
    return "".join(_LETTERS[patient_axis[axis]][int(cosines[patient_axis[axis], axis] < 0)] for axis in range(3))


def nearest_reorientation(direction: Sequence[float], wanted: Sequence[float]) -> Reorientation:
    """How to permute and flip the axes of an image so that they lie as near as they can to wanted directions.

    All ways in which one image may be stored end in the same orientation, even where two are equally near (an image
    turned by 45 degrees): then the choice depends on the directions in space alone.

    Args:
        direction: of the image.
        wanted: directions of the axes x, y, z afterwards.
    """
    cosines = _matrix(wanted).T @ _matrix(direction)  # [wanted axis, stored axis], both in the order x, y, z
    best: tuple[tuple[float, ...], tuple[int, ...], np.ndarray] | None = None
    for order in itertools.permutations(range(3)):
        signs = np.where(np.diag(cosines[:, order]) < 0, -1.0, 1.0)
        turned = np.round(cosines[:, order] * signs, 5)  # coarser than what headers lose
        rank = (round(float(np.trace(turned)), 4), *turned.ravel().tolist())
        if best is None or rank > best[0]:
            best = rank, order, signs
    assert best is not None
    _, (x, y, z), signs = best
    return Reorientation((2 - z, 2 - y, 2 - x), (bool(signs[2] < 0), bool(signs[1] < 0), bool(signs[0] < 0)))


def reorientation_of(geometry: Geometry, wanted: Sequence[float]) -> Reorientation:
    """How to bring an image as near as can be to wanted directions.

    A 2D image is taken for an axial slice, as its header gives the directions of two axes alone. Where these are to
    lie in another plane, what it shows is not known, and it stays as it is stored.
    """
    turn = nearest_reorientation(geometry.direction, wanted)
    return Reorientation() if geometry.is_2d and turn.axis_order[0] != 0 else turn


def common_direction(directions: Sequence[Sequence[float]]) -> Direction:
    """The orientation that most of some images have: the mean direction of those with the commonest axis codes.

    Where it is within 20 degrees of the patient's axes it is these axes, so that small tilts change nothing. Images
    that are oblique by design (short-axis views of the heart) keep their own axes: turned to the patient's, some of
    them would have their slices where others have rows.
    """
    codes = [axis_codes(direction) for direction in directions]
    counts = Counter(codes)
    commonest = min(counts, key=lambda code: (-counts[code], code))
    same = [_matrix(d) for d, code in zip(directions, codes, strict=True) if code == commonest]
    mean, aligned = _orthonormal(np.mean(same, axis=0)), _aligned(commonest)
    if float((mean * aligned).sum(axis=0).min()) >= _ALIGNED_COSINE:
        mean = aligned
    mean = _orthonormal(np.round(mean, 2))  # so coarse that another case hardly changes it
    a, b, c, d, e, f, g, h, i = (np.round(mean, 5) + 0.0).ravel().tolist()  # + 0.0: no negative zeros
    return a, b, c, d, e, f, g, h, i


def _orthonormal(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix of axes at right angles to each other."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ vt)


def _aligned(codes: str) -> np.ndarray:
    """Directions along the patient's axes."""
    cosines = np.zeros((3, 3))
    for axis, letter in enumerate(codes):
        patient_axis = next(i for i, letters in enumerate(_LETTERS) if letter in letters)
        cosines[patient_axis, axis] = 1.0 if letter == _LETTERS[patient_axis][0] else -1.0
    return cosines


def _matrix(direction: Sequence[float]) -> np.ndarray:
    return np.asarray(direction, float).reshape(3, 3)
