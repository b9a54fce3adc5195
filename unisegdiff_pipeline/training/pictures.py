"""Pictures of a held-out case while a network trains, made of a prediction that is made for its scores anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.active_region import foreground
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.storage import StoredCase

if TYPE_CHECKING:
    from unisegdiff_pipeline.reports.case_pictures import Plane
    from unisegdiff_pipeline.reports.snapshots import Snapshot
    from unisegdiff_pipeline.training.fold_run import FoldRun

SHOWN_SAMPLES = 3


@dataclass(frozen=True)
class Moment:
    """When in a training pictures are made."""

    phase: int
    iteration: int


def shown_case(run: FoldRun) -> str:
    """The first monitored case whose reference holds foreground; the first one where none does."""
    for case_id in run.monitored_cases:
        if len(run.data.open(case_id).components.present_classes(row=0)):
            return case_id
    return run.monitored_cases[0]


def keep_pictures(run: FoldRun, moment: Moment, stored: StoredCase, prediction: CasePrediction) -> None:
    """Write the pictures of one case into the fold's folder and log them; trouble with them is only reported."""
    from unisegdiff_pipeline.reports.snapshots import PICTURES_NAME, write_snapshot

    try:
        name = f"phase_{moment.phase}_{moment.iteration:07d}"
        z = shown_slice(run.plans.labels, stored)
        known = run.configuration.knows_spacing(stored.properties.source, run.plans.spacing_known)
        plane = shown_plane(stored.properties, z, known)
        layers = write_snapshot(run.folder / PICTURES_NAME, name, snapshot(run, stored, prediction, plane))
        run.log.record(
            "pictures",
            phase=moment.phase,
            iteration=moment.iteration,
            seconds=run.watch.seconds,
            name=name,
            layers=layers,
            case_id=stored.case_id,
            slice=z,
            num_slices=stored.image.shape[1],
            letters=plane.letters,
        )
    except Exception as error:  # a training is worth more than its pictures
        run.log.say(f"pictures of {stored.case_id} could not be written: {error}")


def shown_plane(properties: CaseProperties, z: int, oriented: bool) -> Plane:
    """Slice `z` of the plan's grid, turned as radiologists see it where the directions of the file can be trusted."""
    from unisegdiff_pipeline.reports.case_pictures import turned_plane

    direction = tuple(properties.reorientation.direction(properties.geometry.direction).ravel().tolist())
    geometry = Geometry(properties.spacing_mm, direction=direction, is_2d=properties.geometry.is_2d)
    return turned_plane(0, z, geometry, oriented)


def snapshot(run: FoldRun, stored: StoredCase, prediction: CasePrediction, plane: Plane) -> Snapshot:
    """What is shown of one slice of a case."""
    from unisegdiff_pipeline.reports.snapshots import Snapshot

    labels = run.plans.labels
    z = plane.index
    reference = plane.turn(np.asarray(stored.labels[0:1, z : z + 1])[0, 0])
    image = plane.turn(np.asarray(stored.image[:, z : z + 1])[:, 0])
    colored = set(run.configuration.preprocessing.normalization) == {"rgb_to_0_1"} and len(image) == 3
    drawn = [plane.turn(prediction.sample(i)[:, z].numpy()) for i in range(min(SHOWN_SAMPLES, prediction.num_samples))]
    return Snapshot(
        image=np.moveaxis(image, 0, -1) if colored else image[0],
        reference=_numbered(labels, labels.decode(labels.encode(reference))),
        segmenter=plane.turn(_foreground(labels, prediction.p_det[:, z])),
        mean=plane.turn(_foreground(labels, prediction.mean[:, z])) if drawn else None,
        samples=tuple(_numbered(labels, labels.decode(p)) for p in drawn),
        pixel_mm=plane.pixel_mm,
    )


def shown_slice(labels: LabelScheme, stored: StoredCase) -> int:
    """Number of the slice that holds most foreground of the reference."""
    reference = np.asarray(stored.labels[0:1])[0]
    return int(labels.foreground(reference).sum(axis=(1, 2)).argmax())


def _foreground(labels: LabelScheme, p: Tensor) -> np.ndarray:
    """Probability (Y, X) of any class, out of (K, Y, X)."""
    return foreground(p, labels.coding).numpy()


def _numbered(labels: LabelScheme, values: np.ndarray) -> np.ndarray:
    """Label values as numbers of classes: 0 background, 1 the first of `LabelScheme.names`, ..."""
    numbers = np.zeros(values.shape, np.uint8)
    for number, value in enumerate(labels.write_values, start=1):
        numbers[values == value] = number
    return numbers
