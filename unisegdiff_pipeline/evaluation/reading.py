"""Reading what belongs to one case, each file checked to lie on the grid of the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, CroppedLabels
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import (
    Geometry,
    Volume,
    geometry_differences,
    on_grid_of,
)
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.npz import read_npz
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.inputs import CaseInputs
from unisegdiff_pipeline.evaluation.unified import SourceLabels, in_scored_values
from unisegdiff_pipeline.io.images import read_labels, read_map

ARRAY_NAMES = ("probabilities", "softmax")  # nnU-Net 2 and this package; nnU-Net 1
MUCH_BETTER = 0.25  # of Dice: axes in another order that fit the mask better by this are the true ones
FITS = 0.5  # Dice of a mask and its probabilities that needs no look at other orders of the axes
PROBABILITY_SLACK = 1e-3  # half precision and resampling leave values slightly outside of 0 to 1


def read_reference(case: CaseInputs, scheme: LabelScheme, check_values: bool = True) -> Volume:
    """The reference of a case, of a unified data set in its values; see `read_mask`."""
    return read_mask(case.reference, scheme, check_values=check_values, source=case.source)


def read_mask(
    path: Path,
    scheme: LabelScheme,
    like: Volume | None = None,
    check_values: bool = True,
    source: SourceLabels | None = None,
) -> Volume:
    """Read a label map.

    Args:
        path: label file.
        scheme: what its values mean.
        like: volume whose shape and geometry it must have.
        check_values: refuse values that the scheme does not know.
        source: whose values the file holds, which become those of the scheme; they are checked in any case.

    Raises:
        UsdError: unreadable, another grid, or an unknown label value.
    """
    volume = read_labels(path)
    if like is not None:
        volume = _on_grid(path, volume, like)
    if check_values or source is not None:
        check_label_values(path, volume.array, scheme if source is None else source.labels)
    return in_scored_values(volume, source)


def check_label_values(path: Path, labels: np.ndarray, scheme: LabelScheme) -> None:
    """Refuse label values that the scheme does not know."""
    # Counting known values takes a pass each; np.unique would sort all voxels.
    if sum(int(np.count_nonzero(labels == value)) for value in scheme.allowed_values) < labels.size:
        unknown = sorted(set(np.unique(labels).tolist()) - scheme.allowed_values)
        raise UsdError(
            f"{path} holds the label value(s) {listed(unknown)}; dataset.json allows "
            f"{', '.join(map(str, sorted(scheme.allowed_values)))}. Correct the file, or give the dataset.json that "
            f"belongs to it with --dataset-json."
        )


def other_values(labels: np.ndarray, scheme: LabelScheme) -> tuple[int, ...]:
    """Label values but 0 that are no class."""
    return tuple(sorted(set(np.unique(labels[labels != 0]).tolist()) - scheme.allowed_values))


def require_scored_values(holds_any: bool, others: Iterable[int], scheme: LabelScheme) -> None:
    """Refuse masks none of which holds a value that is to be scored, but others do."""
    found = sorted(set(others))
    if found and not holds_any:
        raise UsdError(
            f"no mask holds any of the label values {', '.join(scheme.names)} that are to be scored; they hold "
            f"{listed(found)}. Name those (--labels)."
        )


def read_masks(
    paths: Iterable[Path],
    scheme: LabelScheme,
    like: Volume,
    check_values: bool = True,
    source: SourceLabels | None = None,
) -> list[CroppedLabels]:
    """Read the label maps of several samples or raters, one at a time; see `read_mask`."""
    return [CroppedLabels.of(read_mask(path, scheme, like, check_values, source).array[0]) for path in paths]


def read_uncertainty(path: Path, like: Volume) -> np.ndarray:
    """Read an uncertainty map as float32 (Z, Y, X); 16-bit pictures are divided by 65535.

    Raises:
        UsdError: unreadable, another grid, more than one channel, or values that are no finite numbers.
    """
    volume = _on_grid(path, read_map(path), like)
    if volume.array.shape[0] != 1:
        raise UsdError(f"{path} has {volume.array.shape[0]} channels; an uncertainty map has one value a voxel.")
    if not np.isfinite(volume.array).all():
        raise UsdError(
            f"{path} holds NaN or infinity; an uncertainty map is made of finite numbers. Write 0 where nothing is "
            f"unsure (entropies: 0 log 0 is 0)."
        )
    return volume.array[0]


class Probabilities:
    """Probabilities of one case, given out one class at a time.

    Args:
        path: .npz with "probabilities" (or "softmax") of shape (K, Z, Y, X), as this package and nnU-Net write it, or a
            file of real numbers with K channels. 2D cases may leave out Z.
        scheme: classes; K is their number, or one more where channel 0 is the background.
        like: volume whose grid it must have.

    Raises:
        UsdError: unreadable, another grid, another number of channels, or values outside of 0 to 1.
    """

    def __init__(self, path: Path, scheme: LabelScheme, like: Volume) -> None:
        self.path = path
        shape = like.array.shape[1:]
        is_npz = path.suffix.lower() == ".npz"
        self._array = _read_npz(path, scheme, shape) if is_npz else _read_channels(path, like)
        if self._array.ndim == 3 and shape[0] == 1:
            self._array = self._array[:, None]
        _check_shape(path, self._array, shape)
        self._offset = _background_channels(path, len(self._array), scheme)
        self._classes, self._exclusive = len(scheme.names), scheme.coding == "softmax"

    def foreground(self) -> np.ndarray:
        """Where they hold a class (or region) for likelier than none, (Z, Y, X)."""
        highest = self.of_class(0)
        for index in range(1, self._classes):
            highest = np.maximum(highest, self.of_class(index))
        foreground: np.ndarray = highest > (self.of_background() if self._exclusive else 0.5)
        return foreground

    def of_class(self, index: int) -> np.ndarray:
        """Probability of class (or region) number `index` of the scheme, float32 (Z, Y, X), clipped to 0..1."""
        values = np.asarray(self._array[index + self._offset], np.float32)
        low, high = float(values.min()), float(values.max())  # NaN fails both comparisons below
        if not (low >= -PROBABILITY_SLACK and high <= 1 + PROBABILITY_SLACK):
            raise UsdError(
                f"{self.path} holds values from {low:g} to {high:g}; probabilities lie from 0 to 1. Give "
                f"probabilities, not logits (16-bit pictures: 65535 stands for 1)."
            )
        return values if low >= 0 and high <= 1 else np.clip(values, 0, 1)

    def of_background(self) -> np.ndarray:
        """Probability of no class, float32 (Z, Y, X): channel 0 where the file has one, else what classes leave."""
        if self._offset:
            return self.of_class(-1)
        return np.clip(1 - sum(self.of_class(index) for index in range(len(self._array))), 0, 1)


def require_axes_of_mask(found: Probabilities, mask_path: Path, mask: np.ndarray) -> None:
    """Refuse probabilities that fit the foreground of their mask (Z, Y, X) much better in other axes."""
    if _fits_turned(found.foreground(), mask):
        raise other_axes(found.path, mask_path)


def other_axes(path: Path, mask_path: Path) -> UsdError:
    """What is said of probabilities that lie in other axes than their mask."""
    return UsdError(
        f"{path} holds the axes in another order or direction than the mask {mask_path.name} (as nnU-Net's "
        f"NibabelIOWithReorient writes them); predict with a reader that does not turn images, or turn the arrays to "
        f"the axes of the mask."
    )


def crop_geometry(geometry: Geometry, box: Box) -> Geometry:
    """Geometry of a box of a volume: the origin moves along the direction cosines."""
    start_mm = np.array([box[axis][0] * geometry.spacing_mm[axis] for axis in (2, 1, 0)])  # x, y, z
    origin = np.asarray(geometry.origin_mm) + np.reshape(geometry.direction, (3, 3)) @ start_mm
    return Geometry(geometry.spacing_mm, tuple(origin.tolist()), geometry.direction, geometry.is_2d)


def _on_grid(path: Path, volume: Volume, like: Volume) -> Volume:
    """The volume on the grid of `like`; a UsdError where it lies on another one."""
    volume = on_grid_of(volume, like)
    shape, expected = volume.array.shape[1:], like.array.shape[1:]
    if shape != expected:
        raise UsdError(f"{path} has shape {shape} (Z, Y, X), its reference {expected}; resample it to that grid.")
    if differences := geometry_differences(like.geometry, volume.geometry, shape):
        raise UsdError(
            f"{path} lies on another grid than its reference: {'; '.join(differences)}. Resample it to that grid."
        )
    return volume


def _read_npz(path: Path, scheme: LabelScheme, shape: Sequence[int]) -> np.ndarray:
    # Twice a float64 for each value that can be of use, so that another number of channels is named as that.
    most = max(2**30, 16 * (len(scheme.names) + 1) * math.prod(shape))
    (array,) = read_npz(path, ARRAY_NAMES, "Copy or export it again.", any_of=True, max_bytes=most).values()
    if array.dtype.kind not in "fiub":
        raise UsdError(f"{path} holds an array of {array.dtype}; probabilities are real numbers. Export it again.")
    return array


def _read_channels(path: Path, like: Volume) -> np.ndarray:
    volume = _on_grid(path, read_map(path), like)
    return volume.array


def _check_shape(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape[1:] == shape:
        return
    hint = " The axes seem to be (X, Y, Z); transpose the array." if array.shape[1:] == shape[::-1] else ""
    raise UsdError(
        f"{path} holds an array of shape {array.shape}; expected is (K, Z, Y, X) with (Z, Y, X) = {shape}, the grid of "
        f"the case.{hint}"
    )


def _background_channels(path: Path, channels: int, scheme: LabelScheme) -> int:
    """Channels before that of the first class: 1 where the background has one, else 0."""
    classes = len(scheme.names)
    allowed = (classes,) if scheme.coding == "regions" else (classes, classes + 1)
    if channels not in allowed:
        raise UsdError(
            f"{path} holds {channels} channels for {classes} class(es) {', '.join(scheme.names)}; expected are "
            f"{' or '.join(map(str, allowed))}{' (with background first)' if len(allowed) > 1 else ''}."
        )
    return channels - classes


def _fits_turned(predicted: np.ndarray, mask: np.ndarray) -> bool:
    """Whether a foreground (Z, Y, X) fits its mask much better with its axes in another order or direction."""
    here = _dice(predicted, mask)
    sizes = np.count_nonzero(predicted), np.count_nonzero(mask)
    if here >= FITS or 2 * min(sizes) <= (here + MUCH_BETTER) * sum(sizes):
        return False  # in no order of axes can they overlap by so much more
    axes = range(mask.ndim)
    for order in itertools.permutations(axes):
        permuted = predicted.transpose(order)
        if permuted.shape != mask.shape:
            continue
        for flips in itertools.product((False, True), repeat=mask.ndim):
            turned = np.flip(permuted, tuple(axis for axis in axes if flips[axis]))
            if _dice(turned, mask) > here + MUCH_BETTER:
                return True
    return False


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 1.0
