"""The cases that a report shows in pictures: which ones, where their images lie, and what is drawn of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume, on_grid_of
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.evaluation.case import CaseResult
from unisegdiff_pipeline.evaluation.inputs import CaseInputs, Inputs
from unisegdiff_pipeline.evaluation.lesions import ScoredLesion
from unisegdiff_pipeline.evaluation.reading import read_uncertainty
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.evaluation.unified import SourceLabels, in_scored_values
from unisegdiff_pipeline.io.dataset_json import read_dataset_json
from unisegdiff_pipeline.io.images import read_image, read_labels, split_ending
from unisegdiff_pipeline.io.paths import places_above, places_of
from unisegdiff_pipeline.reports.case_pictures import (
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    UNCERTAINTY_MAP,
    Marks,
    Outline,
    Plane,
    Region,
    choose_plane,
    class_colors,
    draw_panel,
    region_of_interest,
    window,
)
from unisegdiff_pipeline.reports.page import Html, legend, panels
from unisegdiff_pipeline.reports.viewer import ViewerCase, ViewerFile, ViewerMark, write_case_viewer

Classes = Mapping[str, Sequence[int]]  # name => label values
SHOWN_SAMPLES = 3
LISTED_LESIONS = 30
UNCERTAINTY_GRADIENT = "linear-gradient(90deg,#000004,#51127c,#b73779,#fc8961,#fcfdbf)"


@dataclass(frozen=True)
class Highlight:
    """A case worth showing.

    Attributes:
        kind: why, such as "Best".
        inputs: its files.
        result: its scores.
        dice: mean over its classes where defined, by which it was chosen; NaN for a false positive.
    """

    kind: str
    inputs: CaseInputs
    result: CaseResult
    dice: float


def highlights(inputs: Inputs, results: Sequence[CaseResult]) -> tuple[Highlight, ...]:
    """The best, the median and the two worst cases by Dice, and the largest prediction on an empty reference.

    Cases without a defined Dice are not ranked. Each case is shown once, so that few cases give fewer pictures; of
    equal ones the first by name is taken.
    """
    files = {case.case_id: case for case in inputs.cases}
    dice = {result.case_id: mean_of_defined(score.dice for score in result.scores) for result in results}
    by_name = {result.case_id: result for result in results}
    ranked = sorted((c for c, value in dice.items() if not math.isnan(value)), key=lambda c: (-dice[c], c))
    chosen: dict[str, str] = {}
    if ranked:
        for kind, place in (("Best", 0), ("Worst", -1), ("Median", (len(ranked) - 1) // 2), ("Second worst", -2)):
            if -len(ranked) <= place:
                chosen.setdefault(ranked[place], kind)
    false_ml = {
        c: sum(s.false_positive_ml for s in by_name[c].scores) for c, value in dice.items() if math.isnan(value)
    }
    largest = max(false_ml, key=lambda c: false_ml[c], default=None)
    if largest is not None and false_ml[largest] > 0:
        chosen[largest] = "Largest false positive on an empty reference"
    order = ("Best", "Median", "Second worst", "Worst")
    names = sorted(chosen, key=lambda c: order.index(chosen[c]) if chosen[c] in order else len(order))
    return tuple(Highlight(chosen[c], files[c], by_name[c], dice[c]) for c in names)


def find_images(reference: Path, case_ids: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Images of cases by nnU-Net's names (imagesTr/CASE_0000.ext for labelsTr/CASE.ext), in channel order.

    Cases without an image are left out: a plain folder of masks has none.
    """
    folder = reference if reference.is_dir() else reference.parent
    for place in places_of(folder):
        images = place.with_name(place.name.replace("labels", "images"))
        if images != place and images.is_dir():
            break
    else:
        return {}
    wanted = set(case_ids)
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(images.iterdir()):
        name, ending = split_ending(composed(path.name))
        match = re.fullmatch(r"(?P<case>.+)_(?P<channel>\d{4})", name)
        if ending and match and match["case"] in wanted:
            found.setdefault(match["case"], []).append((match["channel"], path))
    return {case: tuple(path for _, path in sorted(files)) for case, files in found.items()}


def draw_case(highlight: Highlight, classes: Classes, images: Sequence[Path], spacing_known: bool) -> tuple[Html, ...]:
    """Pictures of a case and the legend of their colours.

    Args:
        highlight: the case.
        classes: label values of each class.
        images: channel files; empty where there is no image.
        spacing_known: whether the files' spacings and directions can be trusted; see `case_pictures.choose_plane`.
    """
    files = highlight.inputs
    reference = _read_reference(files)
    whole = _read_case_image(images, reference)
    labels = {"reference": reference.array[0], "prediction": _read_on_grid(files.prediction, reference)}
    values = sorted({value for members in classes.values() for value in members})
    plane = choose_plane([np.isin(mask, values) for mask in labels.values()], reference.geometry, spacing_known)
    shown = {name: plane.cut(mask) for name, mask in labels.items()}
    raters = [plane.cut(_read_on_grid(path, reference, files.source)) for path in files.raters]
    samples = [plane.cut(_read_on_grid(path, reference)) for path in files.samples[:SHOWN_SAMPLES]]
    blank = np.zeros(shown["reference"].shape, np.uint8)
    background = blank if whole is None else window(plane.cut(whole), reference.geometry.is_2d)
    region = region_of_interest([np.isin(mask, values) for mask in shown.values()], plane.pixel_mm)
    drawing = _CaseDrawing(files.case_id, plane, background, region, classes)
    pictures = [drawing.overview(), *drawing.masks(shown["reference"], shown["prediction"]), *drawing.raters(raters)]
    if files.uncertainty is not None:
        uncertainty = plane.cut(read_uncertainty(files.uncertainty, reference))
        pictures.append(drawing.uncertainty(uncertainty, shown["reference"]))
    pictures += [drawing.sample(i, sample) for i, sample in enumerate(samples)]
    return panels(pictures), drawing.legend(files.uncertainty is not None, len(raters) > 1)


def write_viewer(
    path: Path,
    highlight: Highlight,
    classes: Classes,
    images: Sequence[Path],
    ignore_value: int | None = None,
    spacing_known: bool = True,
) -> ViewerFile | None:
    """Write the viewer of a 3D case; None for a 2D case, which the pictures show whole.

    Masks are shown where they hold a class or the ignore label; other values mean the background, or are not scored.
    """
    values = [
        *(value for members in classes.values() for value in members),
        0 if ignore_value is None else ignore_value,
    ]

    def shown(labels: np.ndarray) -> np.ndarray:
        return np.where(np.isin(labels, values), labels, 0)

    files = highlight.inputs
    reference = _read_reference(files)
    if reference.geometry.is_2d or 1 in reference.array.shape[1:]:
        return None
    image = _read_case_image(images, reference)
    case = ViewerCase(
        case_id=files.case_id,
        geometry=reference.geometry,
        channel_names=channel_names(files.reference, 0 if image is None else len(image)),
        image=np.zeros((1, *reference.array.shape[1:]), np.uint8) if image is None else image,
        labels=label_names(classes),
        classes=list(classes),
        ignored=ignore_value,
        spacing_known=spacing_known,
        reference=shown(reference.array[0]),
        prediction=shown(read_labels(files.prediction).array[0]),
        samples=(shown(read_labels(sample).array[0]) for sample in files.samples),
        raters=(shown(_read_on_grid(rater, reference, files.source)) for rater in files.raters),
        uncertainty=None if files.uncertainty is None else read_uncertainty(files.uncertainty, reference),
        marks=_marks(highlight.result),
        note="" if math.isnan(highlight.dice) else f"Dice {highlight.dice:.3f}",
        report="../report.html",
    )
    return write_case_viewer(path, case)


def channel_names(reference: Path, count: int) -> tuple[str, ...]:
    """Names of so many channels by the dataset.json beside or above the references; none where they do not fit."""
    for folder in places_above(reference.parent, 1):
        if (folder / "dataset.json").is_file():
            try:
                names = read_dataset_json(folder / "dataset.json").channel_names
            except UsdError:
                return ()
            return names if len(names) == count else ()
    return ()


def _read_reference(files: CaseInputs) -> Volume:
    """The reference in the values that are scored; they were checked when the case was."""
    return in_scored_values(read_labels(files.reference), files.source)


def _read_on_grid(path: Path, reference: Volume, source: SourceLabels | None = None) -> np.ndarray:
    """Label map (Z, Y, X) in the values that are scored, a plane in the form that its reference has."""
    return in_scored_values(on_grid_of(read_labels(path), reference), source).array[0]


def _read_case_image(images: Sequence[Path], reference: Volume) -> np.ndarray | None:
    """The image (C, Z, Y, X); None where it is missing, unreadable or on another grid: scores do not depend on it."""
    if not images:
        return None
    try:
        array = on_grid_of(read_image(images), reference).array
    except UsdError:
        return None
    return array if array.shape[1:] == reference.array.shape[1:] else None


class _CaseDrawing:
    """Panels of one slice; with one class reference and prediction share a panel, with several each has its own."""

    def __init__(
        self, case_id: str, plane: Plane, background: np.ndarray, region: Region | None, classes: Classes
    ) -> None:
        self._case_id, self._plane, self._background, self._region = case_id, plane, background, region
        self._classes = classes

    def overview(self) -> tuple[Html, str]:
        marks = Marks(box=self._region, letters=self._plane.letters)
        picture = draw_panel(self._background, self._plane.pixel_mm, f"{self._case_id}: image", marks)
        return picture, f"Image, slice {self._plane.index + 1}" if self._plane.letters else "Image"

    def masks(self, reference: np.ndarray, predicted: np.ndarray) -> list[tuple[Html, str]]:
        if len(self._classes) > 1:
            masks = {"Reference": reference, "Prediction": predicted}
            return [(self._panel(name, self._by_class(mask)), name) for name, mask in masks.items()]
        (members,) = self._classes.values()
        # The wider line beneath stays visible where both agree.
        outlines = [
            Outline(np.isin(reference, members), REFERENCE_COLOR, 2.8),
            Outline(np.isin(predicted, members), PREDICTION_COLOR, 1.3),
        ]
        return [(self._panel("reference and prediction", outlines), "Masks")]

    def raters(self, masks: Sequence[np.ndarray]) -> list[tuple[Html, str]]:
        """Outlines of all raters together; none for several classes, whose colours are taken."""
        if len(masks) < 2 or len(self._classes) > 1:
            return []
        (members,) = self._classes.values()
        outlines = [Outline(np.isin(mask, members), REFERENCE_COLOR, 1.0) for mask in masks]
        return [(self._panel("raters", outlines), f"{len(masks)} raters")]

    def sample(self, index: int, labels: np.ndarray) -> tuple[Html, str]:
        name = f"Sample {index + 1}"
        return self._panel(name, self._by_class(labels)), name

    def uncertainty(self, values: np.ndarray, reference: np.ndarray) -> tuple[Html, str]:
        outlines = [Outline(np.isin(reference, sum(map(tuple, self._classes.values()), ())), "#ffffff", 0.9)]
        picture = draw_panel(
            np.clip(values, 0, 1),
            self._plane.pixel_mm,
            f"{self._case_id}: uncertainty",
            Marks(outlines),
            region=self._region,
            color_map=UNCERTAINTY_MAP,
            highest=1,
        )
        return picture, "Uncertainty"

    def legend(self, with_uncertainty: bool, with_raters: bool) -> Html:
        if len(self._classes) > 1:
            entries = dict(zip(self._classes, class_colors(len(self._classes)), strict=True))
        else:
            entries = {
                "reference, raters" if with_raters else "reference": REFERENCE_COLOR,
                "prediction, samples": PREDICTION_COLOR,
            }
        if with_uncertainty:
            entries["uncertainty, 0 to 1; white line: reference"] = UNCERTAINTY_GRADIENT
        return legend(entries)

    def _by_class(self, labels: np.ndarray) -> list[Outline]:
        if len(self._classes) == 1:
            (members,) = self._classes.values()
            return [Outline(np.isin(labels, members), PREDICTION_COLOR)]
        colors = class_colors(len(self._classes))
        return [
            Outline(np.isin(labels, members), color)
            for members, color in zip(self._classes.values(), colors, strict=True)
        ]

    def _panel(self, name: str, outlines: Sequence[Outline]) -> Html:
        """Outlines on the slice; without any of them a word says so, or else it would look like a bare image."""
        alt = f"{self._case_id}: {name.lower()}"
        marks = Marks(outlines, note="" if any(outline.mask.any() for outline in outlines) else "empty")
        return draw_panel(self._background, self._plane.pixel_mm, alt, marks, region=self._region)


def label_names(classes: Classes) -> dict[int, str]:
    """Name of each label value, of nested regions the innermost that holds it; in the order of the classes."""
    names: dict[int, str] = {}
    for name, members in sorted(classes.items(), key=lambda item: -len(item[1])):
        names |= dict.fromkeys(members, name)
    order = list(classes)
    return dict(sorted(names.items(), key=lambda item: order.index(item[1])))


def _marks(result: CaseResult) -> tuple[ViewerMark, ...]:
    """Reference lesions and false positives, the largest first."""
    several = len(result.classes) > 1
    lesions = [
        (lesion, f"{entry.overlap.class_name}: " if several else "")
        for entry in result.classes
        for lesion in entry.lesions
        if lesion.side == "reference" or not lesion.matched_ids
    ]
    lesions.sort(key=lambda item: -item[0].voxels)
    return tuple(
        ViewerMark(prefix + _mark_name(lesion), lesion.centroid_mm) for lesion, prefix in lesions[:LISTED_LESIONS]
    )


def _mark_name(lesion: ScoredLesion) -> str:
    kind = f"reference {lesion.lesion_id}" if lesion.side == "reference" else f"false positive {lesion.lesion_id}"
    found = "" if lesion.side == "prediction" else ", found" if lesion.matched_ids else ", missed"
    return f"{kind}: {lesion.volume_ml:.3g} ml{found}"
